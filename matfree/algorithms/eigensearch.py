r"""The search behind ``eigsh``: find the wanted pairs, then look for what was missed.

A small residual proves that an eigenvalue is near; it does not prove that none was
missed. A Krylov space from b start vectors sees at most b copies of a multiple
eigenvalue, and every residual is small all the same. So when all pairs have converged, a
fresh random block searches their orthogonal complement, and whatever it finds that
belongs among the wanted is put there, until it finds nothing.

References
----------
How large a random start's part in an eigenvector is, and how it grows: J. Kuczynski, H.
Wozniakowski (1992), doi:10.1137/0613066.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np

from matfree import probes
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.restarting import KrylovDecomposition, Which, order
from matfree.algorithms.sampling import asked_to_stop
from matfree.arrays import to_host
from matfree.protocol import Array
from matfree.results import EigenResult

TIGHTER = 0.9
"""The part of the tolerance that the search itself may use up."""

_STARTS_APART = 1 << 16  # probe numbers between the starts of two searches

_RESOLUTION = 1e4
"""How much larger than the rest a missed eigenvalue's part in a random start vector must
have grown before its absence is believed: 1e4 n / overlap in squared length."""


class EigenStep(NamedTuple):
    """What a callback sees after each block product."""

    num_matvecs: int
    values: HostArray
    """The wanted Ritz values so far."""
    residuals: HostArray
    """Their residuals relative to ||A||."""


@final
class EigenSearch:
    """The wanted pairs found so far, and the ways to find better ones."""

    def __init__(
        self,
        product: Products,
        *,
        k: int,
        which: Which,
        rtol: float,
        capacity: int,
        budget: int,
        seed: int,
        callback: Callable[[EigenStep], bool | None] | None,
    ) -> None:
        if not rtol > 0:
            raise ValueError(f"rtol must be positive: got {rtol}; it is relative to ||A||.")
        if capacity < min(k + 2, product.space.size):
            raise ValueError(f"num_vectors must be at least k + 2: got {capacity} for k = {k}.")
        self.product, self.space = product, product.space
        self.k, self.which, self.rtol = k, which, rtol
        self.capacity, self.budget, self.seed = capacity, budget, seed
        self.callback = callback
        self.values: HostArray = np.zeros(0)
        self.residuals: HostArray = np.zeros(0)
        self.vectors: Array = self.space.zeros(0)
        self.norm = 0.0
        self.num_searches = 0
        self.verified = False
        self.reason = "the budget of products ended first"
        self.history: list[tuple[int, float, float]] = []

    @property
    def converged(self) -> HostArray:
        """Which residuals are within the tolerance, with some room for the last rotation."""
        return np.asarray(self.residuals <= TIGHTER * self.rtol * self.norm)

    def run(self, start: Array) -> None:
        """Find k pairs from a start block."""
        krylov = KrylovDecomposition(
            self.product, start, self._capacity(start.shape[1]), seed=self.seed
        )
        wanted: HostArray | None = None  # coordinates of the wanted pairs, while V is as it was
        try:
            while True:
                krylov.expand()
                values, Y, residuals = krylov.ritz()
                best = order(values, self.which, self.k)
                wanted = Y[:, best]
                self.norm = max(self.norm, krylov.norm, float(np.abs(values).max()))
                self.values, self.residuals = values[best], residuals[best]
                enough = len(best) == self.k and bool(self.converged.all())
                if enough:
                    self.reason = "every residual is within rtol"
                if enough or self._must_stop(krylov) or self._stopped_by_callback():
                    return
                if _restart_if_full(krylov, values, Y, self.which, self.k):
                    wanted = np.eye(krylov.size)[:, : len(best)]
        finally:  # an interrupted run keeps what it had
            if wanted is not None:
                self.vectors = krylov.vectors(wanted)

    def verify(self, block_size: int) -> None:
        """Search the complement of what was found until nothing better turns up."""
        ends: list[tuple[Which, int | None]] = [(self.which, None)]
        if self.which == "BE":
            ends = [("LA", 0), ("SA", 1)]
        for end, offset in ends:
            while True:
                found = self._search_complement(block_size, end, offset)
                if found is None:
                    self.reason = "every residual is within rtol; the search was cut short"
                    return
                if not found:
                    break
        self.verified = True
        self.reason = "every residual is within rtol, and nothing better was found"

    def _search_complement(self, block_size: int, end: Which, offset: int | None) -> bool | None:
        """Whether the complement held something better (now inserted); None: out of budget."""
        mine = self.values if offset is None else self.values[offset::2]
        if len(mine) == 0 or len(self.values) == self.space.size:
            return False
        worst, margin = float(mine[-1]), self.rtol * self.norm
        krylov = self._fresh_decomposition(block_size)
        width = krylov.Q.shape[1]
        while True:
            krylov.expand()
            values, Y, residuals = krylov.ritz()
            best = order(values, end, min(width, len(values)))
            gains = _lead(values[best], worst, end)
            done = bool(residuals[best[0]] <= margin) or krylov.exhausted
            if gains[0] > margin:  # something was missed: converge what beats the worst
                better = best[gains > margin]
                if krylov.exhausted or np.all(residuals[better] <= TIGHTER * margin):
                    self._insert(values[better], residuals[better], krylov.vectors(Y[:, better]))
                    return True
            elif done or _absent(krylov, values, worst, end):
                return False
            if self._must_stop(krylov):
                return None
            _restart_if_full(krylov, values, Y, end, len(best))

    def _fresh_decomposition(self, block_size: int) -> KrylovDecomposition:
        """A new start in the complement of what was found."""
        self.num_searches += 1
        width = min(block_size, self.space.size - len(self.values))
        block = self.space.probes(
            width,
            seed=self.seed,
            start=_STARTS_APART * self.num_searches,
            kind="gaussian",
            stream=probes.START,
        )
        return KrylovDecomposition(
            self.product,
            block,
            self._capacity(width),
            seed=self.seed,
            first_refill=_STARTS_APART * self.num_searches,
            locked=self.vectors,
        )

    def _insert(self, values: HostArray, residuals: HostArray, vectors: Array) -> None:
        """Take the new pairs among the wanted, in their place, and drop the worst."""
        values = np.concatenate((self.values, values))
        keep = order(values, self.which, self.k)
        select = np.eye(len(values))[:, keep]
        everything = self.space.xp.concat((self.vectors, vectors), axis=1)
        self.vectors = everything @ self.space.asarray(select)
        self.residuals = np.concatenate((self.residuals, residuals))[keep]
        self.values = values[keep]

    def result(self, reason: str, *, recompute: bool) -> EigenResult:
        """The pairs in order, with residuals from fresh products where asked."""
        values, residuals, U = self.values, self.residuals, self.vectors
        if recompute:
            values, residuals, U = self._rayleigh_ritz(U)
        ranks = np.argsort(-values) if self.which == "BE" else order(values, self.which, self.k)
        values, residuals = values[ranks], residuals[ranks]
        U = U @ self.space.asarray(np.eye(len(ranks))[:, ranks])
        relative = residuals / self.norm if self.norm > 0 else residuals
        return EigenResult(
            values=values,
            vectors=U,
            residuals=relative,
            converged=relative <= self.rtol,
            norm=self.norm,
            which=self.which,
            method="thick-restart block Lanczos",
            num_matvecs=self.product.num_matvecs,
            num_steps=len(self.history),
            reason=reason,
            seed=self.seed,
            verified=self.verified,
            history=tuple(self.history),
        )

    def _rayleigh_ritz(self, U: Array) -> tuple[HostArray, HostArray, Array]:
        """Values, residuals and vectors from one fresh product with every vector.

        Vectors found in different searches are eigenvectors up to the tolerance only; the
        rotation takes out what they hold of each other.
        """
        AU = self.product(U)
        H = to_host(self.space.gram(U, AU))
        self.product.require_finite(H)
        values, Y = np.linalg.eigh((H + H.conj().T) / 2)
        U, AU = U @ self.space.asarray(Y), AU @ self.space.asarray(Y)
        R = AU - U * self.space.asarray(values)[None, :]
        return values, to_host(self.space.norms(R)), U

    def _capacity(self, width: int) -> int:
        return min(self.space.size, max(self.capacity, self.k + 3 * width))

    def _must_stop(self, krylov: KrylovDecomposition) -> bool:
        width = krylov.Q.shape[1]
        return krylov.exhausted or self.product.num_matvecs + width > self.budget

    def _stopped_by_callback(self) -> bool:
        relative = self.residuals / self.norm if self.norm > 0 else self.residuals
        worst = float(np.max(relative))
        self.history.append((self.product.num_matvecs, float(self.values[0]), worst))
        step = EigenStep(self.product.num_matvecs, self.values, relative)
        stop = asked_to_stop(self.callback, step)
        if stop:
            self.reason = "stopped by the callback"
        return stop


def _restart_if_full(
    krylov: KrylovDecomposition, values: HostArray, Y: HostArray, which: Which, k: int
) -> bool:
    """Keep the wanted Ritz pairs and half of the rest's room, best first, where V is full."""
    if krylov.room:
        return False
    most = krylov.capacity - krylov.Q.shape[1]
    keep = order(values, which, min(most, k + (krylov.capacity - k) // 2))
    krylov.restart(values[keep], Y[:, keep])
    return True


def _lead(values: HostArray, worst: float, end: Which) -> HostArray:
    """By how much values beat the worst of the wanted."""
    if end == "LM":
        return np.abs(values) - abs(worst)
    return values - worst if end == "LA" else worst - values


def _absent(krylov: KrylovDecomposition, values: HostArray, worst: float, end: Which) -> bool:
    """Whether an eigenvalue at least as good as the worst wanted would have shown by now.

    Of such an eigenvalue, m block steps amplify the part in the random start by the
    Chebyshev polynomial of the interval that the Ritz values span. Once that outgrows the
    smallness of a random overlap, 1 / n, by a wide margin, the Rayleigh quotient would be
    at the eigenvalue; it is not, so the eigenvalue is not there.
    """
    low, high = float(values[0]), float(values[-1])
    if end == "LM":
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        target = abs(worst)
    elif end == "SA":
        low, high, target = -high, -low, -worst
    else:
        target = worst
    if high <= low:
        return krylov.num_steps > 2
    gap = max(0.0, (target - high) / (high - low))
    growth = (krylov.num_steps - 1) * math.acosh(1 + 2 * gap) - math.log(2)
    return 2 * growth > math.log(_RESOLUTION * krylov.space.size)
