"""The base class of all operators: matvec, matmat and their adjoints, with checked arguments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, final

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from matfree.arrays import describe, is_complex
from matfree.errors import NoAdjointError, OperatorError
from matfree.operators.containers import as_plain_array
from matfree.protocol import Array, DType, LanczosStep, ProbeKind, QuadraticForms
from matfree.spaces import ArraySpace, VectorSpace, require_space, space_like


class BlockMap(ABC):
    """A linear map on blocks of vectors that checks its arguments.

    It is :class:`matfree.Operator` without the algebra. The algebra needs operators that are
    sums and products of others, which in turn derive from ``Operator``; a base class below
    both keeps the imports free of cycles.

    Parameters
    ----------
    space : VectorSpace
        The space of A @ x.
    domain : VectorSpace, optional
        The space of x; ``space`` by default.
    """

    ndim = 2
    preferred_block_size: int | None = None
    """The default number of vectors per block; None if the operator has no preference."""
    lanczos_step: LanczosStep | None = None
    """A fused step of the Lanczos recurrence, if the operator has one; see ``LinearOperator``."""
    quadratic_forms: QuadraticForms | None = None
    """The numbers x_j^H A x_j without A X, if the operator has them; see ``LinearOperator``."""
    largest_entry: Callable[[], float] | None = None
    """The largest absolute entry of a matrix with fused methods, without a matvec."""
    form_variance: Callable[[ProbeKind], float | None] | None = None
    """The variance of w^H A w over the probes w of a kind, from stored entries, without a matvec.
    It is an upper bound if A is not Hermitian, and None if the entries do not show it."""
    holds_entries = False
    """Whether the matrix is stored, so that matvecs with unit vectors have no rounding errors."""
    # Without these two, NumPy and CuPy would evaluate ``array @ operator`` themselves, element by
    # element, instead of calling __rmatmul__.
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __init__(self, space: VectorSpace, domain: VectorSpace | None = None) -> None:
        self.space = require_space(space)
        self.domain = space if domain is None else require_space(domain, "domain")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.space.size, self.domain.size

    @property
    def dtype(self) -> DType:
        """The data type of the vectors, as an object of their own array library."""
        return self.space.dtype

    @abstractmethod
    def _apply(self, X: Array) -> Array:
        """A @ X for a block (n, k) that has been checked."""

    def _apply_adjoint(self, X: Array) -> Array:
        """A^H @ X for a block (m, k) that has been checked."""
        raise self._no_adjoint()

    def _no_adjoint(self) -> NoAdjointError:
        return NoAdjointError(
            f"{self!r} has no adjoint; define rmatvec (A^H x) to use .H, .T or rmatvec."
        )

    def _apply_to_vector(self, x: Array) -> Array:
        """A @ x for a checked x of shape (n, 1), by a function for vectors if there is one."""
        return self._apply(x)

    def _apply_adjoint_to_vector(self, x: Array) -> Array:
        """A^H @ x for a checked x of shape (m, 1), likewise."""
        return self._apply_adjoint(x)

    @final
    def matvec(self, x: Array) -> Array:
        """A @ x for x of shape (n,); for x of shape (n, 1), the result has shape (m, 1)."""
        if getattr(x, "ndim", None) == 2:
            return self.matmat(x)
        return self._apply_to_vector(_checked(_as_column(x, self.domain), self.domain, "x"))[:, 0]

    @final
    def matmat(self, X: Array) -> Array:
        """A @ X for a block X of shape (n, k), in C order for speed."""
        return self._apply(_checked(X, self.domain, "X"))

    @final
    def rmatvec(self, x: Array) -> Array:
        """A^H @ x for x of shape (m,)."""
        if getattr(x, "ndim", None) == 2:
            return self.rmatmat(x)
        return self._apply_adjoint_to_vector(_checked(_as_column(x, self.space), self.space, "x"))[
            :, 0
        ]

    @final
    def rmatmat(self, X: Array) -> Array:
        """A^H @ X for a block X of shape (m, k)."""
        return self._apply_adjoint(_checked(X, self.space, "X"))

    def to_dense(self, *, columns: range | None = None) -> Array:
        """The matrix, or some of its columns, from matvecs with unit vectors.

        Parameters
        ----------
        columns : range, optional
            The columns to compute; all n by default.

        Returns
        -------
        (m, len(columns)) in the operator's library, dtype and device.

        Cost
        ----
        len(columns) matvecs, in blocks of 64.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = mf.aslinearoperator(np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> (2 * A.H).to_dense()
        array([[2., 6.],
               [4., 8.]])
        """
        chosen = range(self.shape[1]) if columns is None else columns
        # Blocks of 64 limit the memory for unit vectors to 64 n numbers.
        blocks = [
            self.matmat(self.domain.unit_vectors(chosen[begin : begin + 64]))
            for begin in range(0, len(chosen), 64)
        ]
        return self.space.xp.concat(blocks, axis=1)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<{rows}x{columns} {type(self).__name__} of dtype {self.dtype}>"


class NamesOfSciPy:
    """SciPy's names for ``.H``, ``.T``, ``@`` and ``to_dense``."""

    def adjoint(self) -> Any:
        """The adjoint A^H, as ``.H``."""
        return self.H  # type: ignore[attr-defined]

    def transpose(self) -> Any:
        """The transpose A^T, as ``.T``."""
        return self.T  # type: ignore[attr-defined]

    def dot(self, other: Any) -> Any:
        """A @ other for a vector, a block or an operator."""
        return self @ other

    def toarray(self) -> Any:
        """The matrix, as ``to_dense()``."""
        return self.to_dense()  # type: ignore[attr-defined]


def require_matrix(obj: Any) -> None:
    """Refuse arrays and sparse matrices that do not have two dimensions, or no numbers."""
    if len(obj.shape) != 2:
        raise OperatorError(f"a matrix has 2 dimensions: got {describe(obj)}.")
    if isinstance(obj.dtype, np.dtype) and obj.dtype.kind not in "biufc":
        raise OperatorError(
            f"a matrix has real or complex numbers as entries: got {describe(obj)}; convert it "
            "to numbers, with astype(float) for example."
        )


def as_operand(x: Any, space: VectorSpace) -> Any:
    """The right operand of ``@``, converted from a list or another container to an array."""
    if isinstance(x, list | tuple):
        return space.xp.asarray(x, device=space.device)
    return as_plain_array(x)


def has_complex_vectors(operator: BlockMap) -> bool:
    """Whether the vectors of an operator are complex."""
    return is_complex(operator.space.xp, operator.dtype)


def resized(space: VectorSpace, size: int) -> VectorSpace:
    """A space of the same kind whose vectors have another length."""
    return type(space)(space.xp, size, space.dtype, space.device, peers=space.peers)


def complex_space(space: VectorSpace) -> VectorSpace:
    """The space with complex vectors of the same precision."""
    precise = space.xp.finfo(space.dtype).bits > 32
    changed = copy(space)
    changed.dtype = space.xp.complex128 if precise else space.xp.complex64
    return changed


def require_exponent(exponent: Any) -> int:
    """The exponent of a power of an operator, which is a whole number from 0."""
    if not hasattr(exponent, "__index__") or exponent < 0:
        raise ValueError(
            f"the exponent of an operator must be a whole number, at least 0: got {exponent!r}; "
            "pass a solver x -> A^-1 x as an operator for a negative power."
        )
    return int(exponent)


def require_compatible(left: VectorSpace, right: VectorSpace) -> None:
    """Refuse to combine vectors of different libraries, data types or devices."""
    if left.xp is right.xp and left.dtype == right.dtype and left.device == right.device:
        return
    sides = [f"{s.xp.__name__} {s.dtype} on {s.device}" for s in (left, right)]
    raise OperatorError(
        f"the vectors of the two operators differ in library, dtype or device ({sides[0]}; "
        f"{sides[1]}); convert one of the operators first."
    )


def spaces_like(example: Array, shape: tuple[int, ...]) -> tuple[ArraySpace, ArraySpace]:
    """The space and the domain of an operator of shape (m, n); they are one if m = n."""
    m, n = shape
    space = space_like(example, m)
    return space, space if m == n else space_like(example, n)


def _as_column(x: Any, space: VectorSpace) -> Array:
    if getattr(x, "ndim", None) != 1:
        raise OperatorError(
            f"matvec takes a vector of shape ({len(space.rows)},): got {describe(x)}; "
            "pass a block of vectors to matmat."
        )
    return x[:, None]


def _checked(X: Any, space: VectorSpace, name: str) -> Array:
    """The block in the precision of ``space``, after its shape and library were checked."""
    if getattr(X, "ndim", None) != 2 or X.shape[0] != len(space.rows):
        raise OperatorError(
            f"{name} must have shape ({len(space.rows)}, k) for an operator whose vectors "
            f"have {space.size} entries: got {describe(X)}."
        )
    xp = space.xp
    if not is_array_api_obj(X) or array_namespace(X) is not xp:
        raise OperatorError(
            f"{name} must be an array of {xp.__name__}, like the vectors of the operator: "
            f"got {describe(X)}; convert it first."
        )
    if X.dtype == space.dtype:
        return X
    if is_complex(xp, X.dtype) and not is_complex(xp, space.dtype):
        raise OperatorError(
            f"{name} is complex, but the operator is real ({space.dtype}): apply the operator to "
            "the real and the imaginary part, or give it a complex dtype."
        )
    return xp.astype(X, space.dtype)
