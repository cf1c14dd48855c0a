"""Operators made of operators: sums, products, adjoints, shifts, restrictions."""

from __future__ import annotations

from typing import final

from matfree.arrays import conjugate
from matfree.errors import OperatorError
from matfree.operators.base import Operator
from matfree.protocol import Array
from matfree.spaces import RowSpace


@final
class Identity(Operator):
    """The identity of a space."""

    def _apply(self, X: Array) -> Array:
        return self.space.xp.asarray(X, copy=True)

    _apply_adjoint = _apply


@final
class Scaled(Operator):
    """c A for a number c, real where the operator is real."""

    def __init__(self, operator: Operator, factor: complex) -> None:
        super().__init__(operator.space, operator.domain)
        xp = self.space.xp
        if isinstance(factor, complex) and not xp.isdtype(self.dtype, "complex floating"):
            raise OperatorError(
                f"a complex factor ({factor}) needs a complex operator: got {operator!r}."
            )
        self.operator = operator
        self.factor = complex(factor) if isinstance(factor, complex) else float(factor)

    def _apply(self, X: Array) -> Array:
        return self.operator.matmat(X) * self.factor

    def _apply_adjoint(self, X: Array) -> Array:
        return self.operator.rmatmat(X) * self.factor.conjugate()


@final
class Sum(Operator):
    """A + B for operators between the same spaces."""

    def __init__(self, left: Operator, right: Operator) -> None:
        super().__init__(left.space, left.domain)
        if left.shape != right.shape:
            raise OperatorError(f"shapes {left.shape} and {right.shape} cannot be added.")
        _require_same_home(left.space, right.space)
        self.left, self.right = left, right

    def _apply(self, X: Array) -> Array:
        return self.left.matmat(X) + self.right.matmat(X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self.left.rmatmat(X) + self.right.rmatmat(X)


@final
class Product(Operator):
    """A @ B, applied from the right."""

    def __init__(self, left: Operator, right: Operator) -> None:
        super().__init__(left.space, right.domain)
        if left.shape[1] != right.shape[0]:
            raise OperatorError(f"shapes {left.shape} and {right.shape} cannot be multiplied.")
        _require_same_home(left.domain, right.space)
        self.left, self.right = left, right

    def _apply(self, X: Array) -> Array:
        return self.left.matmat(self.right.matmat(X))

    def _apply_adjoint(self, X: Array) -> Array:
        return self.right.rmatmat(self.left.rmatmat(X))


@final
class Adjoint(Operator):
    """A^H, for an operator that knows its adjoint."""

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
    """A^T x = conj(A^H conj(x)), without conjugation of the operator itself."""

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
    """The principal submatrix of a range of coordinates: P^T A P."""

    def __init__(self, operator: Operator, rows: range) -> None:
        n = operator.shape[0]
        if operator.shape[0] != operator.shape[1]:
            raise OperatorError(f"only a square operator can be restricted: got {operator!r}.")
        if not 0 <= rows.start < rows.stop <= n:
            raise ValueError(f"the range must be within [0, {n}] and not empty: got {rows}.")
        whole = operator.space
        if whole.cut:
            raise OperatorError("an operator on vectors cut into pieces cannot be restricted.")
        super().__init__(_resized(whole, len(rows)))
        self.operator, self.chosen = operator, slice(rows.start, rows.stop)

    def _apply(self, X: Array) -> Array:
        return self.operator.matmat(self._embed(X))[self.chosen, :]

    def _apply_adjoint(self, X: Array) -> Array:
        return self.operator.rmatmat(self._embed(X))[self.chosen, :]

    def _embed(self, X: Array) -> Array:
        whole = self.operator.space.zeros(X.shape[1])
        whole[self.chosen, :] = X
        return whole


def _resized(space: RowSpace, size: int) -> RowSpace:
    return type(space)(space.xp, size, space.dtype, space.device, peers=space.peers)


def _require_same_home(left: RowSpace, right: RowSpace) -> None:
    """Both operators' vectors must be of one library, precision and device."""
    if left.xp is right.xp and left.dtype == right.dtype and left.device == right.device:
        return
    sides = [f"{s.xp.__name__} {s.dtype} on {s.device}" for s in (left, right)]
    raise OperatorError(
        f"the operators' vectors live in different places ({sides[0]}; {sides[1]}); "
        "convert one of them first."
    )
