r"""XNysTrace: leave-one-out on the Nystrom approximation, for positive semidefinite operators.

With Y = A W and M = W^H Y, the Nystrom approximation A_hat = Y M^{-1} Y^H satisfies A_hat <= A.
Without probe i it loses rank one:

.. math:: \hat A_i = \hat A - z_i z_i^H, \qquad z_i = \frac{(Y M^{-1})_i}{\sqrt{(M^{-1})_{ii}}}.

The estimates

.. math:: \mathrm{est}_i = \operatorname{tr} \hat A - \|z_i\|^2 + c_i |z_i^H w_i|^2

therefore need only the sketch, which costs one matvec per probe. The factor c_i is 1, or rescales
the sample for probes with a rotation-invariant distribution. A shift nu I of the order of
rounding keeps M invertible; its trace is subtracted at the end.

References
----------
E. N. Epperly, J. A. Tropp, R. J. Webber (2024), doi:10.1137/23M1548323, section 3.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np

from matfree.algorithms.low_rank.nystrom import (
    Nystrom,
    NystromMatrices,
    nystrom,
    nystrom_matrices,
)
from matfree.algorithms.low_rank.range_sketch import (
    RangeSketch,
    coincidence_stderr,
    jackknife_stderr,
)
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import TraceEstimator
from matfree.arrays import epsilon
from matfree.protocol import HostArray


def nystrom_trace(small: NystromMatrices, ny: Nystrom, size: int) -> float:
    """tr A_hat - nu n: the trace of the approximation without the shift."""
    F = ny.Y @ ny.roots
    rest = ny.roots.conj().T @ outside_of_range(small, ny) @ ny.roots
    return float(np.linalg.norm(F) ** 2 + np.trace(rest).real - ny.nu * size)


def outside_of_range(small: NystromMatrices, ny: Nystrom) -> HostArray:
    """The Gram matrix of nu (I - Q Q^H) W, the component of the shifted Y outside Q, (k, k)."""
    return np.asarray(ny.nu**2 * (small.G - small.O.conj().T @ small.O))


class Downdates(NamedTuple):
    r"""The traces of the Nystrom approximations without one or two probes, for M of full rank.

    With N = M^{-1} and I the set of omitted probes, the approximation loses

    .. math:: (Y N)_I N_{II}^{-1} (Y N)_I^H,

    whose trace is tr(N_II^{-1} K_II) for K = (Y N)^H (Y N).
    """

    trace: float
    """tr A_hat without the shift."""
    N: HostArray
    """M^{-1}, (k, k)."""
    K: HostArray
    """(Y N)^H (Y N), (k, k)."""
    C: HostArray
    """(W^H W)^{-1}, (k, k)."""
    free: int
    """n - k + 1, the dimension of the orthogonal complement of all probes but one."""

    @classmethod
    def of(cls, small: NystromMatrices, ny: Nystrom, size: int) -> Downdates:
        # K = N (Y^H Y) N would lose twice as many digits as the square of Y N.
        YN, N = ny.Y @ ny.inverse, ny.inverse
        K = YN.conj().T @ YN + N @ outside_of_range(small, ny) @ N
        free = size - small.G.shape[0] + 1
        return cls(nystrom_trace(small, ny, size), N, K, np.linalg.inv(small.G), free)

    def one_out(self, *, resphere: bool) -> HostArray:
        """The estimates est_i, (k,)."""
        N, K, C = (np.diag(M).real for M in (self.N, self.K, self.C))
        scale = self.free * C if resphere else 1.0
        return np.asarray(self.trace - K / N + scale / N)

    def two_out(self, *, resphere: bool) -> HostArray:
        """The estimates of the whole method without probe i, (k,): the mean over j != i.

        All pairs I = {i, j} are computed at once, each with the inverse of the 2 x 2 matrix
        N_II. This replaces k eigenproblems by k^2 numbers.
        """
        n, K, c = (np.diag(M).real for M in (self.N, self.K, self.C))
        # Of linearly dependent vectors, only rounding is left of the determinant of N_II.
        volume = np.outer(n, n)
        determinant = np.maximum(volume - np.abs(self.N) ** 2, np.finfo(n.dtype).eps * volume)
        lost = np.outer(n, K) + np.outer(K, n) - 2 * (self.N * self.K.conj()).real
        missed = n[:, None] / determinant  # w_j^H (A - A_hat) w_j, row i column j
        if resphere:
            missed *= (self.free + 1) * (c[None, :] - np.abs(self.C) ** 2 / c[:, None])
        estimates = self.trace - lost / determinant + missed
        np.fill_diagonal(estimates, 0.0)
        return np.asarray(estimates.sum(axis=1) / max(1, len(n) - 1))


@final
class XNysTrace(TraceEstimator):
    """XNysTrace: one matvec and one vector (a column of Q) per probe."""

    method = "xnystrace"
    cost = 1
    first_check = 8
    check_growth = 2.0
    mergeable = False
    saved = ("sketch", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.sketch = RangeSketch(A, plan)
        self.resphere = plan.kind in ("sphere", "gaussian")
        self.eps = epsilon(self.space.xp, self.space.dtype)

    def reserve(self, num_probes: int) -> None:
        self.sketch.reserve(num_probes)

    def advance(self, start: int, count: int) -> None:
        self.sketch.extend(count)

    def summary(self) -> Summary:
        probes = self.sketch.independent_probes()
        small = nystrom_matrices(self.sketch).of_probes(probes.numbers)
        size, k = self.space.size, len(probes.numbers)
        ny = nystrom(small, size, self.eps)
        # Without a probe that depends on others, the approximation is the same, and exact for it.
        samples = np.full(self.sketch.num_probes, nystrom_trace(small, ny, size))
        shift = ny.nu * size  # the trace of the shift, a bound on the error that it causes
        if not ny.full_rank:  # without a probe, the range of the sketch is the same
            left_out, residual = np.zeros(k), 0.0
        else:
            downdates = Downdates.of(small, ny, size)
            one_out = downdates.one_out(resphere=self.resphere)
            residual = float(np.abs(one_out - samples[0]).max())
            samples[probes.numbers[probes.essential]] = one_out[probes.essential]
            left_out = downdates.two_out(resphere=self.resphere)
        value, jackknife = float(samples.mean()), jackknife_stderr(left_out)
        stderr = coincidence_stderr(self.space, self.plan.kind, jackknife, residual)
        stderr = max(stderr, shift, ny.missed)
        return Summary(value, stderr, abs(value), stderr, k - 1, samples)
