"""The algebra of operators: sums, products, multiples, adjoints, shifts and submatrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np

from matfree.arrays import conjugate
from matfree.errors import OperatorError
from matfree.operators.base import (
    BlockMap,
    NamesOfSciPy,
    as_operand,
    complex_space,
    has_complex_vectors,
    require_compatible,
    require_exponent,
    resized,
)
from matfree.protocol import Array


class Operator(BlockMap, NamesOfSciPy):
    """The base class of linear operators.

    A subclass implements ``_apply(X)``, which maps a block of vectors (n, k) to A @ X, and
    ``_apply_adjoint(X)`` if the adjoint is known. It inherits ``matvec``, ``matmat``,
    ``rmatvec`` and ``rmatmat``, which check the shape, the library and the data type of
    their arguments; the algebra of ``@``, ``+``, ``-``, ``*``, ``/``, ``**``, ``.H``, ``.T``,
    ``shift`` and ``restrict``, whose results are operators again; and ``to_dense``. SciPy's
    names ``dot``, ``adjoint()``, ``transpose()`` and ``toarray()`` are available as well.
    Operators can be pickled if what they consist of can.

    Parameters
    ----------
    space : VectorSpace
        The space of A @ x.
    domain : VectorSpace, optional
        The space of x; ``space`` by default, which makes the operator square.

    Raises
    ------
    TypeError
        ``space`` or ``domain`` does not derive from :class:`matfree.VectorSpace`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> class Reversal(mf.Operator):  # reverses x; it is its own adjoint
    ...     def __init__(self, n):
    ...         super().__init__(mf.space_like(np.zeros(1), n))
    ...     def _apply(self, X):
    ...         return X[::-1]
    ...     _apply_adjoint = _apply
    >>> A = Reversal(3)
    >>> (A @ A.H + A.shift(2.0)).to_dense()
    array([[3., 0., 1.],
           [0., 4., 0.],
           [1., 0., 3.]])
    """

    def restrict(self, start: int, stop: int) -> Operator:
        """The principal submatrix A[start:stop, start:stop] as an operator."""
        return Restricted(self, range(start, stop))

    @property
    def H(self) -> Operator:
        """The adjoint A^H, as an operator."""
        return Adjoint(self)

    @property
    def T(self) -> Operator:
        """The transpose A^T, without conjugation, as an operator."""
        return Transpose(self)

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Operator):
            return Composition(*_promoted(self, other))
        other = as_operand(other, self.domain)
        return self.matvec(other) if getattr(other, "ndim", 2) == 1 else self.matmat(other)

    def __rmatmul__(self, other: Any) -> Any:
        """x^T @ A for an array: a row vector (m,), or rows (k, m)."""
        other = as_operand(other, self.space)
        return (self.T @ other.T).T if getattr(other, "ndim", 1) == 2 else self.T @ other

    def __pow__(self, exponent: int) -> Operator:
        return Power(self, exponent)

    def __mul__(self, factor: complex) -> Operator:
        if not isinstance(factor, int | float | complex | np.number):
            return NotImplemented
        if not np.iscomplexobj(factor):
            return Scaled(self, float(factor.real))
        return Scaled(self if has_complex_vectors(self) else Complexified(self), complex(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: complex) -> Operator:
        return self * (1 / factor)

    def __neg__(self) -> Operator:
        return self * -1

    def __add__(self, other: Any) -> Operator:
        return Sum(*_promoted(self, other)) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Any) -> Operator:
        return self + -other if isinstance(other, Operator) else NotImplemented

    def shift(self, sigma: complex) -> Operator:
        """A + sigma I."""
        return self + Identity(self.space) * sigma


@final
class Identity(Operator):
    """The identity of a space."""

    def _apply(self, X: Array) -> Array:
        return self.space.xp.asarray(X, copy=True)

    _apply_adjoint = _apply


@final
class Complexified(Operator):
    """A real operator on complex vectors, whose real and imaginary parts form one block."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(complex_space(operator.space), complex_space(operator.domain))
        self.operator = operator

    def _apply(self, X: Array) -> Array:
        return self._by_parts(self.operator.matmat, X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self._by_parts(self.operator.rmatmat, X)

    def _by_parts(self, apply: Callable[[Array], Array], X: Array) -> Array:
        xp, k = self.space.xp, X.shape[1]
        Y = apply(xp.concat((xp.real(X), xp.imag(X)), axis=1))
        return xp.astype(Y[:, :k], self.dtype) + 1j * xp.astype(Y[:, k:], self.dtype)


@final
class Power(Operator):
    """A^p for a square operator and a whole number p >= 0."""

    def __init__(self, operator: Operator, exponent: int) -> None:
        super().__init__(operator.space)
        if operator.shape[0] != operator.shape[1]:
            raise OperatorError(f"only a square operator has powers: got {operator!r}.")
        self.operator, self.exponent = operator, require_exponent(exponent)

    def _apply(self, X: Array) -> Array:
        return self._repeated(self.operator.matmat, X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self._repeated(self.operator.rmatmat, X)

    def _repeated(self, apply: Callable[[Array], Array], X: Array) -> Array:
        X = self.space.xp.asarray(X, copy=self.exponent == 0)
        for _ in range(self.exponent):
            X = apply(X)
        return X


@final
class Scaled(Operator):
    """c A for a number c, real or of the type of A."""

    def __init__(self, operator: Operator, factor: complex) -> None:
        super().__init__(operator.space, operator.domain)
        self.operator, self.factor = operator, factor

    def _apply(self, X: Array) -> Array:
        return self.operator.matmat(X) * self.factor

    def _apply_adjoint(self, X: Array) -> Array:
        return self.operator.rmatmat(X) * self.factor.conjugate()


@final
class Sum(Operator):
    """A + B for operators with the same space and the same domain."""

    def __init__(self, left: Operator, right: Operator) -> None:
        super().__init__(left.space, left.domain)
        if left.shape != right.shape:
            raise OperatorError(f"shapes {left.shape} and {right.shape} cannot be added.")
        require_compatible(left.space, right.space)
        self.left, self.right = left, right

    def _apply(self, X: Array) -> Array:
        return self.left.matmat(X) + self.right.matmat(X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self.left.rmatmat(X) + self.right.rmatmat(X)


@final
class Composition(Operator):
    """A @ B: first B is applied, then A."""

    def __init__(self, left: Operator, right: Operator) -> None:
        super().__init__(left.space, right.domain)
        if left.shape[1] != right.shape[0]:
            raise OperatorError(f"shapes {left.shape} and {right.shape} cannot be multiplied.")
        require_compatible(left.domain, right.space)
        self.left, self.right = left, right

    def _apply(self, X: Array) -> Array:
        return self.left.matmat(self.right.matmat(X))

    def _apply_adjoint(self, X: Array) -> Array:
        return self.right.rmatmat(self.left.rmatmat(X))


@final
class Adjoint(Operator):
    """A^H for an operator A whose adjoint is known."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.domain, operator.space)
        self.operator = operator

    @property
    def H(self) -> Operator:
        """The operator itself."""
        return self.operator

    def _apply(self, X: Array) -> Array:
        return self.operator.rmatmat(X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self.operator.matmat(X)


@final
class Transpose(Operator):
    """A^T, computed as A^T x = conj(A^H conj(x))."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(operator.domain, operator.space)
        self.operator = operator

    @property
    def T(self) -> Operator:
        """The operator itself."""
        return self.operator

    def _apply(self, X: Array) -> Array:
        xp = self.space.xp
        return conjugate(xp, self.operator.rmatmat(conjugate(xp, X)))

    def _apply_adjoint(self, X: Array) -> Array:
        xp = self.space.xp
        return conjugate(xp, self.operator.matmat(conjugate(xp, X)))


@final
class Restricted(Operator):
    """The principal submatrix P^T A P, where the columns of P are consecutive unit vectors."""

    def __init__(self, operator: Operator, rows: range) -> None:
        n = operator.shape[0]
        if operator.shape[0] != operator.shape[1]:
            raise OperatorError(f"only a square operator can be restricted: got {operator!r}.")
        if not 0 <= rows.start < rows.stop <= n:
            raise ValueError(f"the range must lie in [0, {n}] and must not be empty: got {rows}.")
        space = operator.space
        if space.is_sharded:
            raise OperatorError(
                f"an operator on sharded vectors cannot be restricted: got {operator!r}; "
                "block_traces and block_diagonals estimate blocks without restriction."
            )
        super().__init__(resized(space, len(rows)))
        self.operator, self.chosen = operator, slice(rows.start, rows.stop)

    def _apply(self, X: Array) -> Array:
        return self.operator.matmat(self._embed(X))[self.chosen, :]

    def _apply_adjoint(self, X: Array) -> Array:
        return self.operator.rmatmat(self._embed(X))[self.chosen, :]

    def _embed(self, X: Array) -> Array:
        padded = self.operator.space.zeros(X.shape[1])
        padded[self.chosen, :] = X
        return padded


def _promoted(left: Operator, right: Operator) -> tuple[Operator, Operator]:
    """The operands of a sum or product, of which a real one becomes complex if the other is."""
    if has_complex_vectors(left) == has_complex_vectors(right):
        return left, right
    return (left, Complexified(right)) if has_complex_vectors(left) else (Complexified(left), right)
