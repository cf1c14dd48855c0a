r"""XTrace: every probe serves both as a sketch of the rest and as their test.

With Y = A W = Q R, let P_i project onto the products of all probes but the i-th. Then

    est_i = tr(P_i A P_i) + w_i^H (I - P_i) A (I - P_i) w_i

is an unbiased estimate of tr A: its first part is exact, its second a Hutchinson sample of
what the sketch missed. P_i differs from P = Q Q^H by one direction, P_i = P - (Q s_i)(Q s_i)^H
with s_i orthogonal to the other columns of R, so all k estimates cost one sketch, and
their mean uses every probe twice. On a spectrum that decays the error falls with it.

References
----------
E. N. Epperly, J. A. Tropp, R. J. Webber (2024), XTrace: making the most of every sample in
stochastic trace estimation, doi:10.1137/23M1548323, arXiv:2301.07825.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import TraceEstimator
from matfree.algorithms.traces.range_sketch import Columns, RangeSketch, spread
from matfree.arrays import to_host
from matfree.protocol import HostArray


class SmallMatrices(NamedTuple):
    """All that XTrace needs to know, in the coordinates of Q (r columns, k probes)."""

    R: HostArray
    """Q^H A W, (r, k)."""
    H: HostArray
    """Q^H A Q, (r, r)."""
    O: HostArray  # noqa: E741  # the paper's letter
    """Q^H W, (r, k)."""
    N: HostArray
    """W^H A Q, (k, r)."""
    lengths: HostArray
    """||w_i||^2, (k,)."""


def leave_one_out(small: SmallMatrices, size: int, *, resphere: bool) -> HostArray:
    """The estimates est_i, (k,).

    Parameters
    ----------
    small : the small matrices
    size : int
        n.
    resphere : bool
        Rescale each residual sample by (n - rank P_i) over the squared length that its
        probe has outside the sketch: less variance, and unbiased for probes whose
        distribution no rotation changes ("sphere", "gaussian"), only for them.
    """
    R, H, O, N, lengths = small  # noqa: E741
    S = left_out_directions(R)
    a = np.sum(S.conj() * O, axis=0)
    X = O - S * a
    inside = np.trace(H) - np.sum(S.conj() * (H @ S), axis=0)
    outside = (
        a.conj() * np.sum(S.conj() * R, axis=0)
        - np.sum(N.T * X, axis=0)
        + np.sum(X.conj() * (H @ X), axis=0)
    )
    if not resphere:
        return np.asarray(inside + outside)
    free = size - R.shape[0] + np.sum(np.abs(S) ** 2, axis=0)  # n - rank P_i
    missed = lengths - np.sum(np.abs(X) ** 2, axis=0)
    return np.asarray(inside + outside * _rescaling(free, missed, lengths))


def leave_two_out(small: SmallMatrices, size: int, *, resphere: bool) -> HostArray:
    r"""The whole estimator without each probe, (k,): the mean over i of est_i without j.

    Without i and j the range lacks the directions S_I = [s_i s_j], which are not orthogonal to
    each other: with T_I = S_I^H S_I,

        P_I = P - Q S_I T_I^{-1} (Q S_I)^H.

    All pairs at once, row j and column i, in products of k x k matrices. Parameters as for
    ``leave_one_out``.
    """
    R, H, O, N, lengths = small  # noqa: E741
    k, conj = len(lengths), np.conj
    S = left_out_directions(R)
    HS, SH = H @ S, S.conj().T @ H
    T, B, a = S.conj().T @ S, S.conj().T @ HS, S.conj().T @ O
    b, own = np.diag(B), np.diag(a)
    # Two directions alike to the last digit leave rounding of the determinant of T_I.
    det = np.maximum(1 - np.abs(T) ** 2, np.finfo(lengths.dtype).eps)
    inside = np.trace(H) - (b + b[:, None] - conj(T) * B - T * B.T) / det
    # What P has of w_i and P_I has not: S_I (u_i, u_j).
    u_i, u_j = (own - conj(T) * a) / det, (a - T * own) / det
    left, right, M = O.conj().T @ HS, SH @ O, N @ S
    outside = (  # (w - x)^H A w, then -w^H A x, then x^H A x, where x = P_I w
        conj(u_i) * np.sum(S.conj() * R, axis=0)
        - (np.sum(N.T * O, axis=0) - u_i * np.diag(M) - u_j * M.T)
        + (np.sum(O.conj() * (H @ O), axis=0) - u_i * np.diag(left) - u_j * left.T)
        - (conj(u_i) * np.diag(right) + conj(u_j) * right)
        + (np.abs(u_i) ** 2 * b + np.abs(u_j) ** 2 * b[:, None])
        + (conj(u_i) * u_j * B.T + conj(u_j) * u_i * B)
    )
    if resphere:
        units = np.diag(T).real
        free = size - R.shape[0] + units + units[:, None]
        seen = np.sum(np.abs(O) ** 2, axis=0) - (conj(u_i) * own + conj(u_j) * a).real
        outside = outside * _rescaling(free, lengths - seen, lengths)
    estimates = inside + outside
    np.fill_diagonal(estimates, 0.0)
    return np.asarray(estimates.sum(axis=1) / max(1, k - 1))


def _rescaling(free: HostArray, missed: HostArray, lengths: HostArray) -> HostArray:
    """What a squared length outside of the sketch should be over what it is."""
    something = missed > 1e-12 * lengths  # a sketch of the whole space misses nothing
    return np.asarray(np.where(something, free, 0.0) / np.where(something, missed, 1.0))


def left_out_directions(R: HostArray) -> HostArray:
    """Unit vectors s_i orthogonal to all columns of R but the i-th, (r, k).

    Zero where R has more columns than rows: then leaving one out loses no direction.
    """
    r, k = R.shape
    if r < k or k == 0:
        return np.zeros_like(R)
    S: HostArray = np.linalg.inv(R).conj().T
    S /= np.linalg.norm(S, axis=0)
    return S


@final
class XTrace(TraceEstimator):
    """Two products a probe; Q and A Q are kept, 2 num_probes vectors."""

    method = "xtrace"
    cost = 2
    first_check = 8
    check_growth = 2.0
    mergeable = False
    saved = ("sketch", "products", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.sketch = RangeSketch(A, plan)
        self.products = Columns(self.space)  # Z = A Q
        self.resphere = plan.kind in ("sphere", "gaussian")

    def reserve(self, num_probes: int) -> None:
        self.sketch.reserve(num_probes)
        self.products.reserve(num_probes)

    def advance(self, start: int, count: int) -> None:
        fresh = self.sketch.extend(count)
        if fresh.shape[1]:
            self.products.append(self.A(fresh))

    def summary(self) -> Summary:
        small = self._small()
        samples = leave_one_out(small, self.space.size, resphere=self.resphere)
        value, k = samples.mean().item(), samples.size
        left_out = leave_two_out(small, self.space.size, resphere=self.resphere)
        rounding = 10 * np.finfo(samples.dtype).eps * float(np.abs(np.diag(small.H)).sum())
        stderr = max(spread(left_out), rounding)
        return Summary(value, stderr, abs(value), stderr, k - 1, samples)

    def _small(self) -> SmallMatrices:
        Z = self.products.block
        O, ZW, lengths = self.sketch.against_probes(self.sketch.Q, Z)  # noqa: E741
        H = to_host(self.space.gram(self.sketch.Q, Z))
        self.A.require_finite(H)
        return SmallMatrices(self.sketch.R, H, O, ZW.conj().T, lengths)
