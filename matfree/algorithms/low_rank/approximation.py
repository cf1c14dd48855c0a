"""``LowRank``: an approximation of low rank as a result and as an operator."""

from __future__ import annotations

import math
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, ClassVar, Self, final

import numpy as np

from matfree.algorithms.low_rank.shrinkage import Shrinkage, shrunk
from matfree.algorithms.running.counted_operator import converted_block
from matfree.arrays import describe
from matfree.errors import OperatorError
from matfree.operators import Operator
from matfree.protocol import Array, HostArray
from matfree.results import Record
from matfree.spaces import VectorSpace, space_like


@final
@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Record, Operator):
    r"""An approximation :math:`A \approx U \operatorname{diag}(s) V^H` as an operator.

    If A is Hermitian, V = U and the values are eigenvalues, otherwise singular values.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = mf.low_rank(np.diag([9.0, 4.0, 1e-9, 0.0, 0.0]), rank=2, seed=0)
    >>> A.eigenvalues.round(6), (A @ np.ones(5))[:2].round(6)
    (array([9., 4.]), array([9., 4.]))
    >>> A.solve(np.ones(5), shift=1.0).round(6), round(A.logdet(shift=1.0), 6)
    (array([0.1, 0.2, 1. , 1. , 1. ]), 3.912023)
    """

    left: Array
    """(m, r), orthonormal columns u_i, in the operator's own library, dtype and device."""
    values: HostArray
    """(r,) float64, the largest in magnitude first."""
    right: Array | None
    """(n, r), orthonormal columns v_i; None if they are those of ``left``."""
    error_frobenius: float
    """An estimate of the Frobenius norm of A minus the approximation."""
    error_spectral: float
    """An estimate of its spectral norm, which is rather too large than too small."""
    norm_frobenius: float
    """An estimate of the Frobenius norm of A."""
    method: str
    """The name of the algorithm."""
    num_matvecs: int
    """The number of matvecs with A and with A^H."""
    converged: bool
    """Whether the error is within the tolerance, if one was given."""
    reason: str
    """Why the run stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    """(matvecs, estimated Frobenius norm of the error, that of A), one entry per check."""
    left_rows: tuple[int, int, int] | None = None
    """(start, stop, m): the range of local rows of ``left``; None if vectors are whole."""
    right_rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local rows of ``right``; None if vectors are whole."""
    vector_spaces: InitVar[tuple[VectorSpace, VectorSpace] | None] = None
    """The spaces of ``left`` and ``right``; those of whole vectors by default."""

    units: ClassVar[tuple[str, ...]] = (
        *("values", "error_frobenius", "error_spectral"),
        "norm_frobenius",
    )
    by_row: ClassVar[dict[str, tuple[int, str]]] = {
        "left": (0, "left_rows"),
        "right": (0, "right_rows"),
    }

    def __post_init__(self, vector_spaces: tuple[VectorSpace, VectorSpace] | None) -> None:
        if vector_spaces is None:
            left = _space_of(self.left, self.left_rows)
            right = None if self.right is None else _space_of(self.right, self.right_rows)
            vector_spaces = left, left if right is None else right
        object.__setattr__(self, "space", vector_spaces[0])
        object.__setattr__(self, "domain", vector_spaces[1])

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and the spaces unless they are connections to other processes."""
        connected = self.space.is_sharded
        return {
            name: value
            for name, value in vars(self).items()
            if not (connected and name in ("space", "domain"))
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        if "space" not in state:
            self.__post_init__(None)

    @property
    def is_hermitian(self) -> bool:
        """Whether the values are eigenvalues."""
        return self.right is None

    @property
    def rank(self) -> int:
        """The number r of values."""
        return len(self.values)

    @property
    def eigenvalues(self) -> HostArray:
        """(r,) float64, the largest in magnitude first; for a Hermitian operator only."""
        self._require_hermitian("eigenvalues")
        return self.values

    @property
    def eigenvectors(self) -> Array:
        """(n, r), orthonormal columns; for a Hermitian operator only."""
        self._require_hermitian("eigenvectors")
        return self.left

    @property
    def _right(self) -> Array:
        return self.left if self.right is None else self.right

    def _apply(self, X: Array) -> Array:
        return self._product(self.domain, self.left, self._right, X)

    def _apply_adjoint(self, X: Array) -> Array:
        return self._product(self.space, self._right, self.left, X)

    def _product(self, space: VectorSpace, left: Array, right: Array, X: Array) -> Array:
        components = space.xp.astype(space.gram(right, X), space.dtype)
        return left @ (components * space.asarray(self.values)[:, None])

    def solve(self, B: Array, shift: float) -> Array:
        """(A_hat + shift I)^-1 B for a Hermitian approximation.

        Parameters
        ----------
        B : (n,) or (n, k)
        shift : float
            It must not be 0 if r < n, and no eigenvalue may be -shift.

        Returns
        -------
        (n,) or (n, k), as B.

        Raises
        ------
        OperatorError
            The approximation is not Hermitian.
        ValueError
            A_hat + shift I is singular, or B has another shape.

        Cost
        ----
        No matvec with A; 4 n r k operations.
        """
        inverse = self._inverse_of(shift)
        is_vector = getattr(B, "ndim", None) == 1
        block = converted_block(self.space, B[:, None] if is_vector else B, "B")
        found = shrunk(self.space, self.left, inverse[0], inverse[1], block)
        return found[:, 0] if is_vector else found

    def logdet(self, shift: float) -> float:
        """log |det(A_hat + shift I)| for a Hermitian approximation.

        Parameters
        ----------
        shift : float
            As for :meth:`solve`.

        Cost
        ----
        No matvec with A.
        """
        self._inverse_of(shift)
        missing = self.space.size - self.rank
        rest = missing * math.log(abs(shift)) if missing else 0.0
        return float(np.log(np.abs(self.values + shift)).sum()) + rest

    def preconditioner(self, shift: float) -> Operator:
        r"""A preconditioner of A + shift I for :func:`matfree.solve`.

        With the smallest eigenvalue :math:`\lambda_r` of the approximation,

        .. math:: P = (\lambda_r + \sigma) U (\Lambda + \sigma I)^{-1} U^H + (I - U U^H).

        Parameters
        ----------
        shift : float
            At least 0. The approximation has to be positive semidefinite.

        References
        ----------
        Z. Frangella, J. A. Tropp, M. Udell (2023), Randomized Nystrom preconditioning,
        doi:10.1137/21M1466244.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A, b = np.diag(0.8 ** np.arange(100)), np.ones(100)
        >>> P = mf.low_rank(A, 40, positive=True, seed=0).preconditioner(1e-4)
        >>> counts = [mf.solve(A, b, shift=1e-4, preconditioner=M).num_matvecs for M in (P, None)]
        >>> counts[0] < counts[1] / 3
        True
        """
        self._require_hermitian("preconditioner")
        shifted = self.values + shift
        if shift < 0 or not np.all(shifted > 0):
            raise ValueError(
                "a preconditioner needs positive eigenvalues of the approximation + shift I: the "
                f"smallest is {np.min(shifted, initial=shift):.1e} for shift={shift}; pass a "
                "positive shift, and an approximation with positive=True."
            )
        least = float(np.min(shifted, initial=np.inf)) if self.rank else 1.0
        return Shrinkage(self.space, self.left, least / shifted, 1.0)

    def times(self, factor: float) -> Self:
        """The approximation of c A for c > 0.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> mf.low_rank(np.eye(2), 2, seed=0).times(3.0).values.round(9)
        array([3., 3.])
        """
        changes: dict[str, Any] = {name: getattr(self, name) * factor for name in self.units}
        history = tuple((count, x * factor, y * factor) for count, x, y in self.history)
        return replace(self, **changes, history=history, vector_spaces=(self.space, self.domain))

    def _inverse_of(self, shift: float) -> tuple[HostArray, float]:
        """1 / (lambda_i + shift), and 1 / shift for the complement of the eigenvectors."""
        self._require_hermitian("solve and logdet")
        missing = self.space.size - self.rank
        shifted = self.values + shift
        if not np.all(np.isfinite(shifted)) or not np.all(shifted) or (missing and not shift):
            raise ValueError(
                f"the approximation of rank {self.rank} + shift I is singular for shift={shift}; "
                "pass a positive shift."
            )
        return 1 / shifted, 1 / shift if missing else 0.0

    def _require_hermitian(self, what: str) -> None:
        if not self.is_hermitian:
            raise OperatorError(
                f"{what}: only for a Hermitian approximation, got singular triplets of "
                f"{describe(self.left)}; pass a Hermitian operator, such as A.H @ A."
            )

    def _rows(self) -> list[tuple[str, str]]:
        name = "eigenvalue" if self.is_hermitian else "singular value"
        rows = [(f"{name} {j}", f"{x:.10g}") for j, x in enumerate(self.values[:6], start=1)]
        of_norm = self.error_frobenius / self.norm_frobenius if self.norm_frobenius else 0.0
        return [
            *rows,
            ("rank", str(self.rank)),
            ("error", f"{self.error_frobenius:.2e} in the Frobenius norm, {of_norm:.1e} of ||A||"),
            ("spectral error", f"{self.error_spectral:.2e}"),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} matvecs"),
            ("stopped", self.reason),
            ("seed", str(self.seed)),
        ]


@final
class DetachedRows(VectorSpace):
    """Some rows of vectors, without the processes that hold the others."""

    def all_reduce(self, partial: Array) -> Array:
        raise OperatorError(
            f"this approximation holds rows {self.rows.start} to {self.rows.stop} of {self.size} "
            "and is no longer connected to the processes with the others; save it from all "
            "processes, and load the path that was passed to save."
        )


def _space_of(X: Array, rows: tuple[int, int, int] | None) -> VectorSpace:
    """The space of stored vectors, which may be some rows only."""
    if rows is None:
        return space_like(X, X.shape[0])
    start, stop, size = rows
    whole = space_like(X, size)
    return DetachedRows(whole.xp, size, whole.dtype, whole.device, rows=range(start, stop))
