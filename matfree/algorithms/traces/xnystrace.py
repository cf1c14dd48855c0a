r"""XNysTrace: leave-one-out on the Nystrom approximation, for positive semidefinite operators.

One product a probe: with Y = A W and M = W^H Y, the Nystrom approximation
A_hat = Y M^{-1} Y^H is at most A and of the sketch's range. Leaving probe i out changes
A_hat by one rank, A_hat_i = A_hat - z_i z_i^H with z_i = (Y M^{-1})_i / sqrt((M^{-1})_ii), so

    est_i = tr A_hat - ||z_i||^2 + c_i |z_i^H w_i|^2

costs nothing beyond the sketch. A shift nu I, of the size of rounding, keeps M invertible
and is taken off the trace again.

References
----------
E. N. Epperly, J. A. Tropp, R. J. Webber (2024), doi:10.1137/23M1548323, section 3.
"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import TraceEstimator
from matfree.algorithms.traces.range_sketch import RangeSketch, spread
from matfree.arrays import epsilon, to_host
from matfree.errors import OperatorError
from matfree.protocol import HostArray


class NystromMatrices(NamedTuple):
    """All that XNysTrace needs to know, in the coordinates of Q (r columns, k probes)."""

    R: HostArray
    """Q^H A W, (r, k)."""
    O: HostArray  # noqa: E741  # the paper's letter
    """Q^H W, (r, k)."""
    G: HostArray
    """W^H W, (k, k)."""


class Nystrom(NamedTuple):
    """The shifted Nystrom approximation, A + nu I ~ F F^H, in small matrices."""

    nu: float
    roots: HostArray
    """M^{-1/2} V with M = V diag V^H cut at rounding, (k, r')."""
    inverse: HostArray
    """M^{-1}, likewise cut, (k, k)."""
    Y: HostArray
    """Q^H (A + nu I) W, (r, k)."""
    full_rank: bool
    missed: float
    """About the trace that the approximation misses where M was cut; 0 where it was not."""


def nystrom(small: NystromMatrices, size: int, eps: float) -> Nystrom:
    """Factor the core matrix M = W^H (A + nu I) W, or refuse what is not semidefinite.

    Raises
    ------
    OperatorError
        M has an eigenvalue clearly below 0.
    """
    nu = eps * float(np.linalg.norm(small.R)) / math.sqrt(size)
    Y = small.R + nu * small.O
    M = small.O.conj().T @ small.R + nu * small.G
    values, vectors = np.linalg.eigh((M + M.conj().T) / 2)
    top = float(np.abs(values).max(initial=0.0))
    if values.size and values[0] < -max(1e-8, 1e3 * eps) * top:
        raise OperatorError(
            "xnystrace and xnysdiag need a positive semidefinite operator: w^H A w over the "
            f"sketch is as low as {values[0] / top:.1e} of its largest value; use "
            'method="xtrace", which takes any operator.'
        )
    keep = values > len(values) * eps * top
    roots = vectors[:, keep] / np.sqrt(values[keep])
    cut = np.abs(values[~keep])
    # Squared length of the probes outside of A_hat, over the squares of the dimensions left
    # to them: cross-validation's way from inside the sample to outside of it.
    missed = len(values) * float(cut.sum()) / max(1, len(cut)) ** 2
    full_rank = bool(keep.all()) and top > 0
    return Nystrom(nu, roots, roots @ roots.conj().T, Y, full_rank, missed)


def nystrom_trace(small: NystromMatrices, ny: Nystrom, size: int) -> float:
    """tr A_hat without the shift."""
    F = ny.Y @ ny.roots
    rest = ny.roots.conj().T @ outside_of_range(small, ny) @ ny.roots
    return float(np.linalg.norm(F) ** 2 + np.trace(rest).real - ny.nu * size)


def outside_of_range(small: NystromMatrices, ny: Nystrom) -> HostArray:
    """What Y^H Y has of the shifted Y's part outside of Q, nu (I - Q Q^H) W, (k, k)."""
    return np.asarray(ny.nu**2 * (small.G - small.O.conj().T @ small.O))


class Downdates(NamedTuple):
    """What leaving probes out of the approximation takes from its trace; M of full rank.

    The inverse of M without the rows and columns in I is N minus N's part through N_II, so
    A_hat loses (Y N)_I N_II^{-1} (Y N)_I^H, of trace tr(N_II^{-1} K_II).
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
    """n - k + 1, the dimensions that one probe sees beside the others."""

    @classmethod
    def of(cls, small: NystromMatrices, ny: Nystrom, size: int) -> Downdates:
        YN, N = ny.Y @ ny.inverse, ny.inverse  # before its square: K would lose twice the digits
        K = YN.conj().T @ YN + N @ outside_of_range(small, ny) @ N
        free = size - small.G.shape[0] + 1
        return cls(nystrom_trace(small, ny, size), N, K, np.linalg.inv(small.G), free)

    def one_out(self, *, resphere: bool) -> HostArray:
        """The estimates est_i, (k,)."""
        N, K, C = (np.diag(M).real for M in (self.N, self.K, self.C))
        scale = self.free * C if resphere else 1.0
        return np.asarray(self.trace - K / N + scale / N)

    def two_out(self, *, resphere: bool) -> HostArray:
        """The whole estimator without probe i, (k,): the mean over j of est_j without i.

        All pairs I = {i, j} at once, each by the 2 x 2 inverse of N_II: k^2 numbers where
        k small eigenproblems would give the same.
        """
        n, K, c = (np.diag(M).real for M in (self.N, self.K, self.C))
        volume = np.outer(n, n)  # two vectors alike to the last digit leave rounding of it
        determinant = np.maximum(volume - np.abs(self.N) ** 2, np.finfo(n.dtype).eps * volume)
        taken = np.outer(n, K) + np.outer(K, n) - 2 * (self.N * self.K.conj()).real
        missed = n[:, None] / determinant  # w_j^H (A - A_hat) w_j, row i column j
        if resphere:
            missed *= (self.free + 1) * (c[None, :] - np.abs(self.C) ** 2 / c[:, None])
        estimates = self.trace - taken / determinant + missed
        np.fill_diagonal(estimates, 0.0)
        return np.asarray(estimates.sum(axis=1) / max(1, len(n) - 1))


@final
class XNysTrace(TraceEstimator):
    """One product a probe; Q is kept, num_probes vectors."""

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
        small = nystrom_matrices(self.sketch)
        size, k = self.space.size, self.sketch.num_probes
        ny = nystrom(small, size, self.eps)
        shift = ny.nu * size  # what the shift costs in accuracy
        if not ny.full_rank:  # leaving one out loses no direction
            samples, left_out = np.full(k, nystrom_trace(small, ny, size)), np.zeros(k)
        else:
            downdates = Downdates.of(small, ny, size)
            samples = downdates.one_out(resphere=self.resphere)
            left_out = downdates.two_out(resphere=self.resphere)
        stderr = max(spread(left_out), shift, ny.missed)
        value = float(samples.mean())
        return Summary(value, stderr, abs(value), stderr, k - 1, samples)


def nystrom_matrices(sketch: RangeSketch) -> NystromMatrices:
    """R, O and G of a sketch; each pair of probe blocks is made again once."""
    k, gram, O = sketch.num_probes, sketch.space.gram, []  # noqa: E741
    G: HostArray = np.zeros((k, k), dtype=sketch.R.dtype)
    rows = slice(0, 0)
    for W in sketch.probe_blocks():
        rows = slice(rows.stop, rows.stop + W.shape[1])
        O.append(to_host(gram(sketch.Q, W)))
        G[rows, rows] = to_host(gram(W, W))
        columns = rows
        for V in sketch.probe_blocks(range(rows.stop, k)):
            columns = slice(columns.stop, columns.stop + V.shape[1])
            G[rows, columns] = to_host(gram(W, V))
            G[columns, rows] = G[rows, columns].conj().T
    return NystromMatrices(sketch.R, np.hstack(O), G)
