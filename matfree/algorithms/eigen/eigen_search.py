"""The run of ``eigsh``: find the wanted eigenpairs, then search for missed ones.

A small residual proves that an eigenvalue is near; it does not prove that none was missed. A
Krylov space of a block of b start vectors contains at most b eigenvectors of a multiple
eigenvalue, and all residuals can be small nevertheless. Therefore, once all eigenpairs have
converged, a new random block starts a search in their orthogonal complement. Eigenpairs found
there replace the worst of the wanted ones if they are better, and the search is repeated until
it finds nothing better.
"""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np

from matfree import probes
from matfree.algorithms.eigen.arguments import EigenStep, Tolerance
from matfree.algorithms.eigen.missed_eigenvalues import can_rule_out_missed, gain_over_worst
from matfree.algorithms.krylov.rayleigh_ritz import rayleigh_ritz
from matfree.algorithms.krylov.thick_restart import KrylovDecomposition
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.arguments import Which, order
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, StoppingReason

_REFILLS_PER_SEARCH = 1 << 16
"""Every search draws random directions from a range of probe numbers of this length."""


@final
class EigenSearch:
    """The wanted eigenpairs found so far, and the searches that improve them.

    Parameters
    ----------
    A : CountedOperator
    run : Run
    k : int
    which : {"LM", "LA", "SA", "BE"}
    tolerance : Tolerance
    capacity : int
        The number of Lanczos vectors at which the method restarts.
    budget : int
        The maximum number of matvecs.
    """

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
        tolerance: Tolerance,
        capacity: int,
        budget: int,
    ) -> None:
        self.A, self.space, self.run = A, A.space, run
        self.k, self.which, self.tolerance = k, which, tolerance
        self.capacity, self.budget, self.seed = capacity, budget, run.checkpoint.seed
        self.phase: Literal["find", "verify"] = "find"
        self.end = 0  # index of the end of the spectrum that is being verified
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
        """(j,) bool: which residuals are within the tightened tolerance."""
        return np.asarray(self.residuals <= self.tolerance.accepted * self.norm)

    def resume(self, width: int) -> None:
        """Restore the state from the checkpoint, if there is one, for this block size."""
        checkpoint = self.run.checkpoint
        problem = {
            "estimator": "eigsh",
            "seed": self.seed,
            "k": self.k,
            "which": self.which,
            "rtol": self.tolerance.rtol,
            "block_size": width,
            "num_vectors": self.capacity,
        }
        checkpoint.resume(problem, self)
        self.budget += checkpoint.overhead

    def complete(self, start: Array, *, verify: bool) -> None:
        """Find the wanted eigenpairs, then search for missed ones if ``verify`` is true."""
        self.find(start)
        if verify and self.converged.all():
            self.verify(start.shape[1])

    def interrupted(self) -> EigenResult | None:
        """The eigenpairs when the user interrupts the run; None if there are none yet."""
        if not self.vectors.shape[1]:
            return None
        return self.result(StoppingReason.INTERRUPTED, recompute=False)

    def find(self, start: Array) -> None:
        """Expand and restart a Krylov decomposition until the k wanted eigenpairs converge."""
        if self.phase != "find":
            return
        krylov = self._resumed(
            KrylovDecomposition(self.A, start, self._capacity(start.shape[1]), seed=self.seed)
        )
        wanted: HostArray | None = None  # coordinates of the wanted Ritz vectors in the present V
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
                    # The columns of V are now Ritz vectors, the wanted ones first.
                    wanted = np.eye(krylov.size)[:, : len(best)]
                self.run.save()
        finally:  # an interrupted run returns its Ritz vectors too
            if wanted is not None:
                self.vectors = krylov.vectors(wanted)

    def verify(self, block_size: int) -> None:
        """Search the complement of the eigenpairs until nothing better is found.

        For "BE" the two ends of the spectrum are verified one after the other.
        """
        ends: list[tuple[Which, int | None]] = [(self.which, None)]
        if self.which == "BE":
            ends = [("LA", 0), ("SA", 1)]  # the order of "BE" alternates between the ends
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
        """Search the complement once, and insert better eigenpairs that it contains.

        Parameters
        ----------
        block_size : int
        end : {"LM", "LA", "SA"}
        offset : int or None
            For "BE", every second eigenpair from this one on belongs to the end; None: all do.

        Returns
        -------
        bool or None
            Whether better eigenpairs were found. None if the budget was used up first.
        """
        mine = self.values if offset is None else self.values[offset::2]
        if len(mine) == 0 or len(self.values) == self.space.size:
            return False
        worst, margin = float(mine[-1]), self.tolerance.least_gain * self.norm
        krylov = self._resumed(self._fresh_decomposition(block_size))
        width = krylov.Q.shape[1]
        while not self._must_stop(krylov):
            krylov.expand()
            values, Y, residuals = krylov.ritz()
            best = order(values, end, min(width, len(values)))
            gains = gain_over_worst(values[best], worst, end)
            # If all but a few eigenvalues are equal, some vector of the first block is an
            # eigenvector for them, and says nothing about the few.
            settled = krylov.num_steps > 1 and bool(residuals[best[0]] <= margin)
            done = settled or krylov.exhausted
            if gains[0] > margin:  # missed: continue until all better Ritz pairs converge
                better = best[gains > margin]
                if krylov.exhausted or np.all(
                    residuals[better] <= self.tolerance.accepted * self.norm
                ):
                    self._insert(values[better], residuals[better], krylov.vectors(Y[:, better]))
                    return True
            elif done or can_rule_out_missed(krylov, values, worst, end):
                return False
            krylov.restart_if_full(values, Y, end, len(best))
            self.run.save()
        return None

    def _fresh_decomposition(self, block_size: int) -> KrylovDecomposition:
        """A Krylov decomposition of the complement, from a new random start block."""
        if not self._has_stored_krylov:  # otherwise an interrupted search is resumed
            self.num_searches += 1
        width = min(block_size, self.space.size - len(self.values))
        first = _REFILLS_PER_SEARCH * self.num_searches
        block = self.space.probes(
            width, seed=self.seed, start=first, kind="gaussian", stream=probes.START
        )
        krylov = KrylovDecomposition(
            self.A,
            block,
            self._capacity(width),
            seed=self.seed,
            first_refill=first,
            locked=self.vectors,
        )
        # The complement may contain nothing but rounding errors, which are relative to all of A.
        krylov.norm = self.norm
        return krylov

    def _insert(self, values: HostArray, residuals: HostArray, vectors: Array) -> None:
        """Merge new eigenpairs into the wanted ones in order, and drop the worst."""
        values = np.concatenate((self.values, values))
        keep = order(values, self.which, self.k)
        select = np.eye(len(values))[:, keep]
        everything = self.space.xp.concat((self.vectors, vectors), axis=1)
        self.vectors = everything @ self.space.asarray(select)
        self.residuals = np.concatenate((self.residuals, residuals))[keep]
        self.values = values[keep]

    def result(self, reason: str, *, recompute: bool) -> EigenResult:
        """The eigenpairs in order, with residuals from new matvecs if ``recompute`` is true."""
        values, residuals, U = self.values, self.residuals, self.vectors
        if recompute:
            # Vectors from different searches are eigenvectors up to the tolerance only; the
            # rotation removes the coupling that remains between them.
            values, residuals, U = rayleigh_ritz(self.A, U, self.A(U))
        ranks = np.argsort(-values) if self.which == "BE" else order(values, self.which, self.k)
        values, residuals = values[ranks], residuals[ranks]
        U = U @ self.space.asarray(np.eye(len(ranks))[:, ranks])
        relative = residuals / self.norm if self.norm > 0 else residuals
        return EigenResult(
            values=values,
            vectors=U,
            residuals=relative,
            converged=relative <= self.tolerance.rtol,
            norm=self.norm,
            which=self.which,
            method="thick-restart block Lanczos",
            num_matvecs=self.A.num_matvecs,
            num_steps=len(self.history),
            reason=self.tolerance.reason(reason, relative),
            seed=self.seed,
            verified=self.verified,
            history=tuple(self.history),
            rows=self.space.row_range,
        )

    @property
    def _has_stored_krylov(self) -> bool:
        """Whether the checkpoint contains a decomposition that was not restored yet."""
        return self.run.checkpoint.has_object("krylov")

    def _resumed(self, krylov: KrylovDecomposition) -> KrylovDecomposition:
        """The decomposition, restored from the checkpoint if it contains one."""
        self.run.checkpoint.resume_object("krylov", krylov)
        self.krylov = krylov
        return krylov

    def _begin_verification(self, end: int) -> None:
        """Record in the checkpoint that a search begins, unless an interrupted one is resumed."""
        if not self._has_stored_krylov:
            self.phase, self.end, self.krylov = "verify", end, None
            self.run.save()

    def _capacity(self, width: int) -> int:
        # Three blocks more than the wanted vectors, or a restart would leave no space to expand.
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
