"""An operator that counts its matvecs and checks the results for NaN and asymmetry."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from matfree.algorithms.running.magnitude import require_entries_in_range, require_in_range
from matfree.arrays import epsilon, is_complex, to_host
from matfree.errors import NonFiniteError, NotHermitianError, OperatorError
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Array, HostArray, ProbeKind
from matfree.spaces import VectorSpace

_NOISE_FACTOR = 30.0
"""An asymmetry up to this multiple of the measured relative noise is attributed to noise."""

_REMEDY = "use matfree.trace, matfree.diagonal or matfree.svds, which need no symmetry"
"""What to use for an operator that is not Hermitian, unless the function has another answer."""


@final
class CountedOperator:
    """An operator for the use of one algorithm, with a count of its matvecs.

    Every checkpoint stores the count.

    Parameters
    ----------
    A : anything ``aslinearoperator`` accepts
    square : bool
        Whether the algorithm needs a square operator. The attribute ``space`` is the space
        of the vectors that the operator is applied to.
    remedy : str
        What to use for an operator that is not Hermitian, for the error message.

    Raises
    ------
    OperatorError
        The operator is empty, or it is not square although the algorithm needs that.
    """

    saved = ("noise", "relative_noise", "noise_is_known")

    def __init__(self, A: Any, *, square: bool = True, remedy: str = _REMEDY) -> None:
        self.operator: Operator = aslinearoperator(A)
        self.remedy = remedy
        self.space = self.operator.domain
        self.num_matvecs = 0
        self._num_checked = 0
        self.noise = 0.0
        """||A v - A' v|| for a repeated matvec with ||v|| = 1."""
        self.relative_noise = 0.0
        """The noise relative to ||A v||."""
        self.noise_is_known = False
        self._in_range = False
        self._variances: dict[ProbeKind, float | None] = {}
        self._blocks_to_watch = 0
        self._sample: tuple[Array, Array] | None = None
        m, n = self.operator.shape
        if square and m != n:
            raise OperatorError(
                f"the operator must be square: got shape ({m}, {n}); for a rectangular one use "
                "matfree.svds, or B.H @ B with B = matfree.aslinearoperator(A), whose "
                "eigenvalues are the squared singular values."
            )
        if m == 0 or n == 0:
            raise OperatorError(f"the operator must not be empty: got shape ({m}, {n}).")

    def __call__(self, X: Array) -> Array:
        """Return A @ X and count one matvec for every column of X."""
        self.num_matvecs += X.shape[1]
        Y = self.operator.matmat(X)
        if not self._in_range:
            size = require_in_range(self.operator, X, Y)
            if not np.isfinite(size):  # large entries next to NaN would overflow below
                self.require_finite(np.asarray(size))
            self._in_range = True
        if self._blocks_to_watch:
            self._blocks_to_watch -= 1
            # Copies, because algorithms may overwrite both blocks.
            copy = self.space.xp.asarray
            self._sample = copy(X[:, :1], copy=True), copy(Y[:, :1], copy=True)
            if not self._blocks_to_watch:
                self.measure_noise()
        return Y

    def block_size(self, requested: int | None) -> int | None:
        """The number of vectors per block: as requested, or as the operator prefers."""
        return self.operator.preferred_block_size if requested is None else requested

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """The operator's fused Lanczos step, counted; None if it has none.

        It is not used while the noise of individual matvecs is being measured.
        """
        step = self.operator.lanczos_step
        if step is None or not self._may_use_fused:
            return None
        result = step(V, previous, beta, scale)
        # None stands for a block width that the operator declines; nothing was computed then.
        self.num_matvecs += V.shape[1] if result is not None else 0
        return result

    def quadratic_forms(self, X: Array) -> Array:
        """x_j^H A x_j for the columns of X, (k,), counted as one matvec per column."""
        forms = self.operator.quadratic_forms
        result = forms(X) if forms is not None and self._may_use_fused else None
        if result is None:
            return self.space.dots(X, self(X))
        self.num_matvecs += X.shape[1]
        return result

    def form_variance(self, kind: ProbeKind) -> float | None:
        """The variance of w^H A w over probes of a kind, if stored entries show it.

        It is None before the magnitude of the entries is known, whose squares may overflow.
        """
        known = self.operator.form_variance
        if known is None or not self._may_use_fused:
            return None
        if kind not in self._variances:
            self._variances[kind] = known(kind)
        return self._variances[kind]

    @property
    def _may_use_fused(self) -> bool:
        """Whether the operator's fused methods may be used.

        They compute sums over rows, which are complete only if vectors are not sharded, and
        they do not return the matvecs from which noise and magnitude are measured.
        """
        if self.space.is_sharded or self._blocks_to_watch:
            return False
        if not self._in_range and self.operator.largest_entry is not None:
            require_entries_in_range(self.operator, self.operator.largest_entry())
            self._in_range = True
        return self._in_range

    def watch(self) -> None:
        """Measure the noise on the second block from now on, unless it is known.

        In a Krylov sequence the vectors of the second block are images under A. They show the
        noise in the directions in which A is large.
        """
        self._blocks_to_watch = 0 if self.noise_is_known else 2

    def measure_noise(self) -> None:
        """Repeat the stored matvec, if there is one, and record ||A v - A' v||."""
        if self._sample is None:
            return
        x, y = self._sample
        self._sample, self._blocks_to_watch = None, 0
        self.num_matvecs += x.shape[1]
        again = self.operator.matmat(x)
        norms = to_host(self.space.norms(self.space.xp.concat((x, y, again - y), axis=1)))
        self.noise = float(norms[2] / norms[0]) if norms[0] > 0 else 0.0
        self.relative_noise = float(norms[2] / norms[1]) if norms[1] > 0 else 0.0
        self.noise_is_known = True

    def require_finite(self, *numbers: HostArray) -> None:
        """Raise NonFiniteError if there is NaN or infinity among numbers on the host.

        Every matvec since the last call must have contributed to the numbers. They are needed
        on the host anyway, so that the check costs no synchronization of its own.
        """
        first, self._num_checked = self._num_checked + 1, self.num_matvecs
        if all(np.all(np.isfinite(x)) for x in numbers):
            return
        last = self.num_matvecs
        which = f"matvec {last}" if first >= last else f"one of the matvecs {first} to {last}"
        raise NonFiniteError(
            f"{which} of {self.operator!r} contains NaN or infinity, so that nothing can be "
            "estimated; fix the operator first."
        )

    def require_hermitian(self, defect: float) -> None:
        """Raise NotHermitianError if an asymmetry exceeds rounding and measured noise.

        Parameters
        ----------
        defect : float
            |u^H A v - conj(v^H A u)| / ||A|| for unit vectors u and v of the algorithm.
        """
        # Far above rounding, and far below the asymmetry of a matrix without any symmetry.
        limit = epsilon(self.space.xp, self.space.dtype) ** (1 / 3)
        limit = max(limit, _NOISE_FACTOR * self.relative_noise)
        if defect > limit:
            refusal = NotHermitianError(
                f"the operator is not Hermitian: |u^H A v - conj(v^H A u)| is {defect:.1e} ||A|| "
                f"(limit {limit:.0e} in {self.space.dtype}), found within {self.num_matvecs} "
                f"matvecs; {self.remedy}, or symmetrize it: (B + B.H) / 2 with "
                "B = matfree.aslinearoperator(A)."
            )
            refusal.num_matvecs = self.num_matvecs
            raise refusal


def converted_block(space: VectorSpace, block: Any, name: str) -> Array:
    """Convert a block of vectors to the array library, dtype and device of a space.

    Parameters
    ----------
    space : VectorSpace
    block : (rows, k) with k > 0, of any array library
    name : str
        The name of the argument, for the error message.

    Raises
    ------
    ValueError
        The block has another shape, or is complex although the space is real.
    """
    if isinstance(block, list | tuple):
        block = space.xp.asarray(block, device=space.device)
    rows, shape = len(space.rows), tuple(getattr(block, "shape", ()))
    if len(shape) != 2 or shape[0] != rows or not shape[1]:
        found = shape if hasattr(block, "shape") else type(block).__name__
        raise ValueError(f"{name} must have shape ({rows}, k), like the operator: got {found}.")
    converted = space.xp.asarray(block, device=space.device)
    if is_complex(space.xp, converted.dtype) and not is_complex(space.xp, space.dtype):
        raise ValueError(
            f"{name} is complex ({converted.dtype}), but the operator is real ({space.dtype}): "
            "pass its real part, or give the operator a complex dtype."
        )
    return space.xp.astype(converted, space.dtype)
