"""Products counted, and looked at where their numbers reach the host anyway."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from matfree.arrays import epsilon, to_host
from matfree.errors import NonFiniteError, NotHermitianError, OperatorError
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

_NOISY = 30.0
"""The asymmetry that noise explains, in multiples of what one product showed."""


@final
class CountedOperator:
    """An operator in the hands of one algorithm; its count belongs to every checkpoint.

    Parameters
    ----------
    A : anything ``aslinearoperator`` accepts, not empty
    square : bool
        Whether the algorithm needs a square one; ``space`` is that of its arguments.
    """

    saved = ("noise", "relative_noise", "noise_is_known")

    def __init__(self, A: Any, *, square: bool = True) -> None:
        self.operator: Operator = aslinearoperator(A)
        self.space = self.operator.domain
        self.num_matvecs = 0
        self._num_checked = 0
        self.noise = 0.0
        """||A v - A' v|| of a repeated product, ||v|| = 1."""
        self.relative_noise = 0.0
        """The same relative to ||A v||."""
        self.noise_is_known = False
        self._blocks_to_watch = 0
        self._sample: tuple[Array, Array] | None = None
        m, n = self.operator.shape
        if square and m != n:
            raise OperatorError(
                f"the operator must be square: got shape ({m}, {n}); for a rectangular A use "
                "A.H @ A, whose eigenvalues are the squared singular values."
            )
        if m == 0 or n == 0:
            raise OperatorError(f"the operator is empty: its shape is ({m}, {n}).")

    def __call__(self, X: Array) -> Array:
        """A @ X, counting the columns of X."""
        self.num_matvecs += X.shape[1]
        Y = self.operator.matmat(X)
        if self._blocks_to_watch:
            self._blocks_to_watch -= 1
            copy = self.space.xp.asarray
            self._sample = copy(X[:, :1], copy=True), copy(Y[:, :1], copy=True)
            if not self._blocks_to_watch:
                self.measure_noise()
        return Y

    def block_size(self, asked: int | None) -> int | None:
        """The number of vectors to send at once: as asked, or as the operator prefers."""
        return self.operator.preferred_block_size if asked is None else asked

    def lanczos_step(
        self, V: Array, previous: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array] | None:
        """The operator's own step of the recurrence, counted; None where it has none.

        Not while the noise of single products is watched.
        """
        step = self.operator.lanczos_step
        if step is None or not self._may_sum:
            return None
        made = step(V, previous, beta, scale)
        self.num_matvecs += V.shape[1] if made is not None else 0
        return made

    def quadratic_forms(self, X: Array) -> Array:
        """x_j^H A x_j for the columns of X, (k,), counting them; by the operator where it can."""
        forms = self.operator.quadratic_forms
        made = forms(X) if forms is not None and self._may_sum else None
        if made is None:
            return self.space.dots(X, self(X))
        self.num_matvecs += X.shape[1]
        return made

    @property
    def _may_sum(self) -> bool:
        """Whether sums over rows may be the operator's own: it has all of them."""
        return not self.space.is_sharded and not self._blocks_to_watch

    def watch(self) -> None:
        """Measure the noise on the second block from here, unless it is known.

        In a Krylov sequence its vectors have been through A, and show the noise where A is
        large.
        """
        self._blocks_to_watch = 0 if self.noise_is_known else 2

    def measure_noise(self) -> None:
        """Repeat the last product that was kept, unless that was done: ||A v - A' v||."""
        if self._sample is None:
            return
        x, y = self._sample
        self._sample, self._blocks_to_watch = None, 0
        self.num_matvecs += x.shape[1]
        again = self.operator.matmat(x)
        sizes = to_host(self.space.norms(self.space.xp.concat((x, y, again - y), axis=1)))
        self.noise = float(sizes[2] / sizes[0]) if sizes[0] > 0 else 0.0
        self.relative_noise = float(sizes[2] / sizes[1]) if sizes[1] > 0 else 0.0
        self.noise_is_known = True

    def require_finite(self, *numbers: HostArray) -> None:
        """Refuse NaN and infinity in host numbers that every new product went into."""
        first, self._num_checked = self._num_checked + 1, self.num_matvecs
        if all(np.all(np.isfinite(x)) for x in numbers):
            return
        last = self.num_matvecs
        which = f"product {last}" if first >= last else f"one of the products {first} to {last}"
        raise NonFiniteError(
            f"{which} of {self.operator!r} holds NaN or infinity; mend the operator before "
            "estimating anything of it."
        )

    def require_hermitian(self, defect: float) -> None:
        """Refuse an asymmetry that no rounding explains.

        Parameters
        ----------
        defect : |u^H A v - conj(v^H A u)| / ||A|| over unit vectors met on the way.
        """
        limit = epsilon(self.space.xp, self.space.dtype) ** (1 / 3)
        limit = max(limit, _NOISY * self.relative_noise)  # what was measured explains it
        if defect > limit:
            raise NotHermitianError(
                f"the operator is not Hermitian: |u^H A v - conj(v^H A u)| is {defect:.1e} of "
                f"||A|| (limit {limit:.0e} in {self.space.dtype}), seen within "
                f"{self.num_matvecs} products; symmetrise it ((A + A.H) / 2), or use "
                "trace, diagonal or A.H @ A, which need no symmetry."
            )


def adopted(space: VectorSpace, block: Any, name: str) -> Array:
    """A block (rows, k), k > 0, of any library, as a block of this space.

    Raises
    ------
    ValueError
        Its shape is another; ``name`` is what the text calls it.
    """
    rows, shape = len(space.rows), tuple(getattr(block, "shape", ()))
    if len(shape) != 2 or shape[0] != rows or not shape[1]:
        found = shape if hasattr(block, "shape") else type(block).__name__
        raise ValueError(f"{name} must have shape ({rows}, k), like the operator: got {found}.")
    return space.xp.astype(space.xp.asarray(block, device=space.device), space.dtype)
