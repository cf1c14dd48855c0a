"""What every operator of ours can do, given one thing: how it maps a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

from array_api_compat import array_namespace, is_array_api_obj

from matfree.arrays import describe, is_complex
from matfree.errors import OperatorError
from matfree.protocol import Array, DType, LanczosStep, QuadraticForms
from matfree.spaces import VectorSpace, require_space


class BlockMap(ABC):
    """A linear map on blocks that checks its arguments: an operator without its algebra.

    Parameters
    ----------
    space : the space of A @ x
    domain : the space of x; ``space`` by default
    """

    ndim = 2
    preferred_block_size: int | None = None
    """Vectors to send at once where nobody says: as many as cost little more than one."""
    lanczos_step: LanczosStep | None = None
    """A step of the Lanczos recurrence in one go, where the operator has it."""
    quadratic_forms: QuadraticForms | None = None
    """x_j^H A x_j without A X, where the operator has it."""
    __array_ufunc__ = None  # ndarray @ operator comes to __rmatmul__
    __array_priority__ = 1000  # and so does a CuPy array's

    def __init__(self, space: VectorSpace, domain: VectorSpace | None = None) -> None:
        self.space = require_space(space)
        self.domain = space if domain is None else require_space(domain, "domain")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.space.size, self.domain.size

    @property
    def dtype(self) -> DType:
        """The data type of the vectors, one of their own library's."""
        return self.space.dtype

    @abstractmethod
    def _apply(self, X: Array) -> Array:
        """A @ X for a block (n, k) that was checked."""

    def _apply_adjoint(self, X: Array) -> Array:
        """A^H @ X for a block (m, k) that was checked."""
        raise NotImplementedError(
            f"{self!r} has no adjoint; give it rmatvec (A^H x) to use .H, .T or rmatvec."
        )

    @final
    def matvec(self, x: Array) -> Array:
        """A @ x for x of shape (n,); (n, 1) is accepted and comes back as (m, 1)."""
        if getattr(x, "ndim", None) == 2:
            return self.matmat(x)
        return self.matmat(_as_column(x, self.domain))[:, 0]

    @final
    def matmat(self, X: Array) -> Array:
        """A @ X for a block X of shape (n, k), in C order for speed."""
        return self._apply(_checked(X, self.domain, "X"))

    @final
    def rmatvec(self, x: Array) -> Array:
        """A^H @ x for x of shape (m,)."""
        if getattr(x, "ndim", None) == 2:
            return self.rmatmat(x)
        return self.rmatmat(_as_column(x, self.space))[:, 0]

    @final
    def rmatmat(self, X: Array) -> Array:
        """A^H @ X for a block X of shape (m, k)."""
        return self._apply_adjoint(_checked(X, self.space, "X"))

    def to_dense(self, *, columns: range | None = None) -> Array:
        """The matrix itself, or some of its columns, from products with unit vectors.

        Parameters
        ----------
        columns : range, optional
            Which columns; all n by default.

        Returns
        -------
        (m, len(columns)) in the operator's library, dtype and device.

        Cost
        ----
        len(columns) products, one block of them at a time.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = mf.aslinearoperator(np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> (2 * A.H).to_dense()
        array([[2., 6.],
               [4., 8.]])
        """
        chosen = range(self.shape[1]) if columns is None else columns
        blocks = [
            self.matmat(self.domain.unit_vectors(chosen[begin : begin + 64]))
            for begin in range(0, len(chosen), 64)
        ]
        return self.space.xp.concat(blocks, axis=1)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<{rows}x{columns} {type(self).__name__} of dtype {self.dtype}>"


def _as_column(x: Any, space: VectorSpace) -> Array:
    if getattr(x, "ndim", None) != 1:
        raise OperatorError(
            f"matvec takes a vector of shape ({len(space.rows)},): got {describe(x)}; "
            "pass a block of vectors to matmat."
        )
    return x[:, None]


def _checked(X: Any, space: VectorSpace, name: str) -> Array:
    """The block, after asking whether it has this space's shape, library and precision."""
    if getattr(X, "ndim", None) != 2 or X.shape[0] != len(space.rows):
        raise OperatorError(
            f"{name} must have shape ({len(space.rows)}, k) for an operator whose vectors "
            f"have {space.size} entries: got {describe(X)}."
        )
    xp = space.xp
    if not is_array_api_obj(X) or array_namespace(X) is not xp:
        raise OperatorError(
            f"{name} must be an array of {xp.__name__}, like the operator's own vectors: "
            f"got {describe(X)}; convert it first."
        )
    if X.dtype == space.dtype:
        return X
    if is_complex(xp, X.dtype) and not is_complex(xp, space.dtype):
        raise OperatorError(
            f"{name} is complex and the operator real ({space.dtype}): apply it to the real "
            "and imaginary part, or make the operator complex."
        )
    return xp.astype(X, space.dtype)
