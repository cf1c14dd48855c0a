"""The run of ``low_rank``: a sketch that grows until its error is within the tolerance."""

from __future__ import annotations

import math
from typing import NamedTuple, final

import numpy as np

from matfree.algorithms.low_rank.approximation import LowRank
from matfree.algorithms.low_rank.leave_one_out import Errors, nystrom_errors, projection_errors
from matfree.algorithms.low_rank.nystrom import (
    Nystrom,
    NystromMatrices,
    nystrom,
    nystrom_eigenpairs,
    nystrom_matrices,
)
from matfree.algorithms.low_rank.range_sketch import RangeSketch
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.run import Run
from matfree.arrays import epsilon, rounding, to_host
from matfree.errors import NotHermitianError, OperatorError
from matfree.orthonormal import project_out
from matfree.protocol import Array, HostArray
from matfree.results import StoppingReason
from matfree.spaces import VectorSpace

_PROBE_GROWTH = 1.5
"""The ratio of the numbers of probes at successive estimates of the error."""

_FIRST_CHECK = 16

_POSITIVE_USER = (
    "positive=True needs {}; pass positive=False, which costs one more matvec for every column of "
    "the sketch."
)


class LowRankStep(NamedTuple):
    """What a callback is given after each estimate of the error."""

    num_matvecs: int
    """The number of matvecs so far."""
    error_frobenius: float
    """The estimated Frobenius norm of the error, before truncation."""
    norm_frobenius: float
    """The estimated Frobenius norm of A."""

    def times(self, factor: float) -> LowRankStep:
        """The same for the operator multiplied by a factor."""
        return LowRankStep(
            self.num_matvecs, self.error_frobenius * factor, self.norm_frobenius * factor
        )


class Factors(NamedTuple):
    """A_hat = left diag(values) right^H with its errors, before truncation."""

    left: Array
    values: HostArray
    right: Array | None
    errors: Errors
    method: str


@final
class LowRankRun:
    """The sketch so far, and what follows from it.

    Parameters
    ----------
    A : CountedOperator
    run : Run
    plan : Plan
        Budget, tolerance, seed and block size.
    rank : int, optional
        The rank that is wanted.
    positive : bool, optional
        Whether A is Hermitian and positive semidefinite; None decides from the sketch.
    """

    saved = ("sketch", "history")

    def __init__(
        self,
        A: CountedOperator,
        run: Run[LowRankStep],
        plan: Plan,
        *,
        rank: int | None,
        positive: bool | None,
    ) -> None:
        self.A, self.space, self.run, self.plan = A, A.space, run, plan
        self.rank, self.positive = rank, positive
        self.sketch = RangeSketch(A, plan)
        self.history: list[tuple[int, float, float]] = []
        self.reason: str = StoppingReason.BUDGET
        self.eps = epsilon(self.space.xp, self.space.dtype)
        self.is_square = A.operator.shape[0] == A.operator.shape[1]

    def complete(self, most: int) -> None:
        """Extend the sketch until the error is within the tolerance, or to ``most`` probes."""
        check = float(min(_FIRST_CHECK, most) if self.rank is None else most)
        while True:
            self.sketch.complete(int(check), self.run.save)
            error = self._errors().frobenius
            norm = self._norm()
            self.history.append((self.A.num_matvecs, error, norm))
            self.run.bar.show(self.sketch.num_probes, lambda: f"error {error:.1e}")  # noqa: B023
            if self.plan.rtol is not None and error <= self.plan.rtol * norm:
                self.reason = StoppingReason.TOLERANCE
                return
            step = LowRankStep(self.A.num_matvecs, error, norm)
            if self.run.is_stopped(lambda: step):  # noqa: B023  # called at once
                self.reason = StoppingReason.CALLBACK
                return
            if check >= most:
                return
            check = min(float(most), math.ceil(_PROBE_GROWTH * check))

    def _norm(self) -> float:
        """The Frobenius norm of A, from the norms of the columns of A W."""
        return math.sqrt(float(np.mean(np.sum(np.abs(self.sketch.R) ** 2, axis=0))))

    def _errors(self) -> Errors:
        found = self._nystrom()
        return self._projection_errors() if found is None else self._nystrom_errors(found)

    def _nystrom_errors(self, ny: Nystrom) -> Errors:
        # Rounding in the inverse of M is amplified, and nothing else remains if the range is
        # the whole space.
        floor = 200 * self.sketch.num_probes * self.eps * self._norm()
        if self.sketch.rank >= self.space.size:
            return Errors(floor, floor)
        return nystrom_errors(ny, self.space.size).at_least(floor)

    def _projection_errors(self) -> Errors:
        floor = 32 * self.eps * self._norm()
        if self.sketch.rank >= min(self.A.operator.shape):
            return Errors(floor, floor)
        return projection_errors(self.sketch.R, floor)

    def _nystrom(self) -> Nystrom | None:
        """The Nystrom approximation; None if A may not be, or is not, positive semidefinite."""
        if self.positive is False or not self.is_square:
            return None
        try:
            return nystrom(self._small(), self.space.size, self.eps, user=_POSITIVE_USER)
        except OperatorError:  # without symmetry, or with a negative Rayleigh quotient
            if self.positive:
                raise
            return None

    def _small(self) -> NystromMatrices:
        """The small matrices of a square operator, which are checked for symmetry."""
        small = nystrom_matrices(self.sketch)
        M = small.O.conj().T @ small.R
        sizes = np.max(np.linalg.norm(small.R, axis=0), initial=0.0)
        lengths = np.sqrt(np.diag(small.G).real).max(initial=0.0)
        if sizes > 0:
            defect = np.abs(M - M.conj().T).max() / (sizes * lengths)
            self.A.require_hermitian(float(defect))
        return small

    def factors(self) -> Factors:
        """The approximation from the whole sketch."""
        found = self._nystrom()
        if found is not None:
            return self._nystrom_factors(found)
        return self._eigen_factors() if self._is_hermitian() else self._singular_factors()

    def _is_hermitian(self) -> bool:
        if not self.is_square:
            return False
        try:
            self._small()
        except NotHermitianError:
            return False
        return True

    def _nystrom_factors(self, ny: Nystrom) -> Factors:
        values, U = nystrom_eigenpairs(self._small(), self.space.size, self.eps)
        errors = self._nystrom_errors(ny)
        left = self.sketch.Q @ self.space.asarray(U)
        return Factors(left, values, None, errors, "randomized Nystrom approximation")

    def _eigen_factors(self) -> Factors:
        """Rayleigh-Ritz in the range of Q, for one matvec with every column of Q."""
        Q, space = self.sketch.Q, self.space
        images, squares = [np.zeros((Q.shape[1], 0))], 0.0
        for part in self._parts():
            outside = space.xp.asarray(self.A(Q[:, part]), copy=True)
            images.append(to_host(project_out(space, outside, Q)))
            # What A maps from the range of Q to its complement is missing as well.
            norms = to_host(space.norms(outside))
            self.A.require_finite(images[-1], norms)
            squares += float(np.sum(norms**2))
        T = np.hstack(images)
        values, Y = np.linalg.eigh((T + T.conj().T) / 2)
        best = np.argsort(-np.abs(values), kind="stable")
        found = self._projection_errors()
        errors = Errors(math.hypot(found.frobenius, math.sqrt(squares)), 2 * found.spectral)
        left = Q @ space.asarray(Y[:, best])
        return Factors(left, values[best], None, errors, "randomized Rayleigh-Ritz projection")

    def _singular_factors(self) -> Factors:
        """The singular value decomposition of Q^H A, for one matvec with A^H for every column."""
        Q, domain = self.sketch.Q, self.A.space
        adjoint = CountedOperator(self.A.operator.H, square=False)
        blocks = [adjoint(Q[:, part]) for part in self._parts()]
        B = domain.xp.concat(blocks, axis=1) if blocks else domain.zeros(0)
        self.A.num_matvecs += adjoint.num_matvecs
        V = domain.orthonormalize(B)
        C = to_host(domain.gram(V, B))
        self.A.require_finite(C)
        right, values, left = np.linalg.svd(C, full_matrices=False)
        U = Q @ self.sketch_space.asarray(left.conj().T)
        V = V @ domain.asarray(right)
        return Factors(U, values, V, self._projection_errors(), "randomized SVD")

    def _reason(self) -> str:
        if self.plan.rtol is None and self.reason == StoppingReason.BUDGET:
            return StoppingReason.ALL_PROBES
        return self.reason

    @property
    def sketch_space(self) -> VectorSpace:
        """The space of A @ x."""
        return self.A.operator.space

    def _parts(self) -> list[slice]:
        width, rank = self.plan.block_size, self.sketch.rank
        return [slice(i, min(i + width, rank)) for i in range(0, rank, width)]

    def interrupted(self) -> LowRank | None:
        """The approximation when the user interrupts the run; None if there is no sketch yet."""
        if not self.sketch.num_probes:
            return None
        self.reason = StoppingReason.INTERRUPTED
        return self.result()

    def result(self) -> LowRank:
        """The approximation, truncated to the rank or to the tolerance."""
        factors, norm = self.factors(), self._norm()
        values, kept = factors.values, len(factors.values)
        if self.rank is not None:
            kept = min(kept, self.rank)
        elif self.plan.rtol is not None:
            kept = _rank_within(values, self.plan.rtol * norm - factors.errors.frobenius)
        # Directions of rounding errors are no part of the range.
        floor = rounding(self.space.xp, self.space.dtype) * float(np.abs(values).max(initial=0.0))
        kept = min(kept, int(np.sum(np.abs(values) > floor)))
        errors = factors.errors.with_tail(np.abs(values[kept:]))
        met = self.plan.rtol is None or errors.frobenius <= self.plan.rtol * norm
        return LowRank(
            left=factors.left[:, :kept],
            values=values[:kept],
            right=None if factors.right is None else factors.right[:, :kept],
            error_frobenius=errors.frobenius,
            error_spectral=min(errors.spectral, errors.frobenius),
            norm_frobenius=norm,
            method=factors.method,
            num_matvecs=self.A.num_matvecs,
            converged=met,
            reason=self._reason(),
            seed=self.plan.seed,
            history=tuple(self.history),
            left_rows=self.sketch_space.row_range,
            right_rows=None if factors.right is None else self.space.row_range,
            vector_spaces=(self.sketch_space, self.space),
        )


def _rank_within(values: HostArray, allowed: float) -> int:
    """The least rank for which the norm of the values beyond it is at most ``allowed``."""
    if allowed <= 0:
        return len(values)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]
    return int(np.sum(tails > allowed))
