r"""The search behind ``eigsh``: find the wanted pairs, then look for what was missed.

A small residual proves that an eigenvalue is near; it does not prove that none was
missed. A Krylov space from b start vectors sees at most b copies of a multiple
eigenvalue, and every residual is small all the same. So when all pairs have converged, a
fresh random block searches their orthogonal complement, and whatever it finds that
belongs among the wanted is put there, until it finds nothing."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple, final

import numpy as np

from matfree import probes
from matfree.algorithms.eigen.missed_eigenvalues import can_rule_out_missed, gain_over_worst
from matfree.algorithms.krylov.thick_restart import KrylovDecomposition
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.arguments import Which, order
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, StoppingReason

TIGHTER = 0.9
"""The part of the tolerance that the search itself may use up."""

_STARTS_APART = 1 << 16  # probe numbers between the starts of two searches


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

    saved = (
        *("phase", "end", "values", "residuals", "vectors", "norm"),
        *("num_searches", "verified", "reason", "history", "krylov"),
    )
    by_row: ClassVar = {"vectors": 0}

    def __init__(
        self,
        A: CountedOperator,
        run: Run[EigenStep],
        *,
        k: int,
        which: Which,
        rtol: float,
        capacity: int,
        budget: int,
    ) -> None:
        self.A, self.space, self.run = A, A.space, run
        self.k, self.which, self.rtol = k, which, rtol
        self.capacity, self.budget, self.seed = capacity, budget, run.checkpoint.seed
        self.phase: Literal["find", "verify"] = "find"
        self.end = 0  # of the spectrum, under verification
        self.krylov: KrylovDecomposition | None = None
        self.values: HostArray = np.zeros(0)
        self.residuals: HostArray = np.zeros(0)
        self.vectors: Array = self.space.zeros(0)
        self.norm = 0.0
        self.num_searches = 0
        self.verified = False
        self.reason: str = StoppingReason.BUDGET
        self.history: list[tuple[int, float, float]] = []

    @property
    def converged(self) -> HostArray:
        """Which residuals are within the tolerance, with some room for the last rotation."""
        return np.asarray(self.residuals <= TIGHTER * self.rtol * self.norm)

    def resume(self, width: int) -> None:
        """Continue from the checkpoint of a search with this block size."""
        checkpoint = self.run.checkpoint
        problem = {
            "estimator": "eigsh",
            "seed": self.seed,
            "k": self.k,
            "which": self.which,
            "rtol": self.rtol,
            "block_size": width,
            "num_vectors": self.capacity,
        }
        checkpoint.resume(problem, self)
        self.budget += checkpoint.overhead

    def complete(self, start: Array, *, verify: bool) -> None:
        """Find the pairs, then search for what was missed."""
        self.find(start)
        if verify and self.converged.all():
            self.verify(start.shape[1])

    def interrupted(self) -> EigenResult | None:
        """The pairs when the user interrupts the search; None if there are none yet."""
        if not self.vectors.shape[1]:
            return None
        return self.result(StoppingReason.INTERRUPTED, recompute=False)

    def find(self, start: Array) -> None:
        """Find k pairs from a start block."""
        if self.phase != "find":
            return
        krylov = self._resumed(
            KrylovDecomposition(self.A, start, self._capacity(start.shape[1]), seed=self.seed)
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
                    self.reason = StoppingReason.RESIDUALS
                if enough or self._must_stop(krylov) or self._stopped_by_callback():
                    return
                if krylov.restart_if_full(values, Y, self.which, self.k):
                    wanted = np.eye(krylov.size)[:, : len(best)]
                self.run.save()
        finally:  # an interrupted run keeps what it had
            if wanted is not None:
                self.vectors = krylov.vectors(wanted)

    def verify(self, block_size: int) -> None:
        """Search the complement of what was found until nothing better turns up."""
        ends: list[tuple[Which, int | None]] = [(self.which, None)]
        if self.which == "BE":
            ends = [("LA", 0), ("SA", 1)]
        self._begin_verification(self.end)
        while self.end < len(ends):
            found = self._search_complement(block_size, *ends[self.end])
            if found is None:
                self.reason = StoppingReason.UNVERIFIED
                return
            self._begin_verification(self.end if found else self.end + 1)
        self.verified = True
        self.reason = StoppingReason.VERIFIED

    def _search_complement(self, block_size: int, end: Which, offset: int | None) -> bool | None:
        """Whether the complement held something better (now inserted); None: out of budget."""
        mine = self.values if offset is None else self.values[offset::2]
        if len(mine) == 0 or len(self.values) == self.space.size:
            return False
        worst, margin = float(mine[-1]), self.rtol * self.norm
        krylov = self._resumed(self._fresh_decomposition(block_size))
        width = krylov.Q.shape[1]
        while not self._must_stop(krylov):
            krylov.expand()
            values, Y, residuals = krylov.ritz()
            best = order(values, end, min(width, len(values)))
            gains = gain_over_worst(values[best], worst, end)
            done = bool(residuals[best[0]] <= margin) or krylov.exhausted
            if gains[0] > margin:  # something was missed: converge what beats the worst
                better = best[gains > margin]
                if krylov.exhausted or np.all(residuals[better] <= TIGHTER * margin):
                    self._insert(values[better], residuals[better], krylov.vectors(Y[:, better]))
                    return True
            elif done or can_rule_out_missed(krylov, values, worst, end):
                return False
            krylov.restart_if_full(values, Y, end, len(best))
            self.run.save()
        return None

    def _fresh_decomposition(self, block_size: int) -> KrylovDecomposition:
        """A new start in the complement of what was found."""
        if not self._has_stored_krylov:  # else the search under way goes on
            self.num_searches += 1
        width = min(block_size, self.space.size - len(self.values))
        block = self.space.probes(
            width,
            seed=self.seed,
            start=_STARTS_APART * self.num_searches,
            kind="gaussian",
            stream=probes.START,
        )
        krylov = KrylovDecomposition(
            self.A,
            block,
            self._capacity(width),
            seed=self.seed,
            first_refill=_STARTS_APART * self.num_searches,
            locked=self.vectors,
        )
        krylov.norm = self.norm  # what is left may be rounding only: it is judged against all of A
        return krylov

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
            num_matvecs=self.A.num_matvecs,
            num_steps=len(self.history),
            reason=reason,
            seed=self.seed,
            verified=self.verified,
            history=tuple(self.history),
            rows=self.space.row_range,
        )

    def _rayleigh_ritz(self, U: Array) -> tuple[HostArray, HostArray, Array]:
        """Values, residuals and vectors from one fresh product with every vector.

        Vectors found in different searches are eigenvectors up to the tolerance only; the
        rotation takes out what they hold of each other.
        """
        AU = self.A(U)
        H = to_host(self.space.gram(U, AU))
        self.A.require_finite(H)
        values, Y = np.linalg.eigh((H + H.conj().T) / 2)
        U, AU = U @ self.space.asarray(Y), AU @ self.space.asarray(Y)
        R = AU - U * self.space.asarray(values)[None, :]
        return values, to_host(self.space.norms(R)), U

    @property
    def _has_stored_krylov(self) -> bool:
        """Whether the checkpoint holds a decomposition that waits to be taken up."""
        return self.run.checkpoint.holds("krylov")

    def _resumed(self, krylov: KrylovDecomposition) -> KrylovDecomposition:
        """A new decomposition, or, once, the one that was under way."""
        self.run.checkpoint.take_up("krylov", krylov)
        self.krylov = krylov
        return krylov

    def _begin_verification(self, end: int) -> None:
        """Note in the checkpoint that a search begins, unless it is being gone on with."""
        if not self._has_stored_krylov:
            self.phase, self.end, self.krylov = "verify", end, None
            self.run.save()

    def _capacity(self, width: int) -> int:
        return min(self.space.size, max(self.capacity, self.k + 3 * width))

    def _must_stop(self, krylov: KrylovDecomposition) -> bool:
        width = krylov.Q.shape[1]
        return krylov.exhausted or self.A.num_matvecs + width > self.budget

    def _stopped_by_callback(self) -> bool:
        relative = self.residuals / self.norm if self.norm > 0 else self.residuals
        worst = float(np.max(relative))
        self.history.append((self.A.num_matvecs, float(self.values[0]), worst))
        self.run.bar.show(
            int(self.converged.sum()),
            lambda: f"{self.A.num_matvecs} matvecs, worst residual {worst:.1e}",
        )
        step = EigenStep(self.A.num_matvecs, self.values, relative)
        stop = self.run.is_stopped(lambda: step)
        if stop:
            self.reason = StoppingReason.CALLBACK
        return stop
