r"""XTrace: every probe is used for the sketch and, in turn, as a sample of the residual.

With Y = A W = Q R, let P_i be the orthogonal projector onto the range of A W without its i-th
column. Then

.. math:: \mathrm{est}_i = \operatorname{tr}(P_i A P_i) + w_i^H (I - P_i) A (I - P_i) w_i

is an unbiased estimate of tr A: the first term is exact, and the second is a Hutchinson sample
of the residual. P_i differs from P = Q Q^H by one direction,

.. math:: P_i = P - (Q s_i)(Q s_i)^H,

where s_i is orthogonal to the other columns of R. Hence all k estimates follow from one sketch,
and their mean uses every probe twice. If the spectrum decays, the error decays with it.

References
----------
E. N. Epperly, J. A. Tropp, R. J. Webber (2024), XTrace: making the most of every sample in
stochastic trace estimation, doi:10.1137/23M1548323, arXiv:2301.07825.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, final

import numpy as np

from matfree.algorithms.low_rank.range_sketch import (
    Columns,
    RangeSketch,
    coincidence_stderr,
    jackknife_stderr,
)
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import TraceEstimator
from matfree.arrays import to_host
from matfree.protocol import HostArray


class SmallMatrices(NamedTuple):
    """The small matrices of XTrace, for a basis Q of r columns and k probes W."""

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

    def of_probes(self, index: HostArray) -> SmallMatrices:
        """The matrices of some of the probes, for the same basis."""
        R, H, O, N, lengths = self  # noqa: E741
        return SmallMatrices(R[:, index], H, O[:, index], N[index, :], lengths[index])


def leave_one_out(
    small: SmallMatrices, size: int, *, resphere: bool, S: HostArray | None = None
) -> HostArray:
    """The estimates est_i, (k,).

    Parameters
    ----------
    small : SmallMatrices
    size : int
        The size n of the operator.
    resphere : bool
        Multiply each sample of the residual by (n - rank P_i) / ||(I - P_i) w_i||^2. This
        reduces the variance. It is unbiased only for probes with a rotation-invariant
        distribution ("sphere", "gaussian").
    S : (r, k), optional
        The directions s_i; those of ``left_out_directions`` by default.
    """
    R, H, O, N, lengths = small  # noqa: E741
    S = left_out_directions(R) if S is None else S
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
    r"""The estimates of the whole method without probe j, (k,): the mean over i != j.

    Without the probes i and j, the range loses the span of S_I = [s_i s_j], which are not
    orthogonal to each other: with T_I = S_I^H S_I,

    .. math:: P_I = P - Q S_I T_I^{-1} (Q S_I)^H.

    All pairs are computed at once in k x k matrices with row j and column i. The parameters are
    those of :func:`leave_one_out`.
    """
    R, H, O, N, lengths = small  # noqa: E741
    k, conj = len(lengths), np.conj
    S = left_out_directions(R)
    HS, SH = H @ S, S.conj().T @ H
    T, B, a = S.conj().T @ S, S.conj().T @ HS, S.conj().T @ O
    b, own = np.diag(B), np.diag(a)
    # Of linearly dependent directions, only rounding is left of the determinant of T_I.
    det = np.maximum(1 - np.abs(T) ** 2, np.finfo(lengths.dtype).eps)
    inside = np.trace(H) - (b + b[:, None] - conj(T) * B - T * B.T) / det
    # (P - P_I) w_i = Q S_I (u_i, u_j)
    u_i, u_j = (own - conj(T) * a) / det, (a - T * own) / det
    left, right, M = O.conj().T @ HS, SH @ O, N @ S
    outside = (  # (w - x)^H A w - w^H A x + x^H A x, line by line, for x = P_I w
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
    """The expected over the actual squared length of a probe outside the range of the sketch.

    It is 0 if nothing but rounding lies outside, which happens for a sketch of the whole space.
    """
    nonzero = missed > 1e-12 * lengths
    return np.asarray(np.where(nonzero, free, 0.0) / np.where(nonzero, missed, 1.0))


def left_out_directions(R: HostArray) -> HostArray:
    """Unit vectors s_i that are orthogonal to all columns of R but the i-th, (r, k).

    They are zero if R has more columns than rows, because the range without a probe is then
    the same.
    """
    r, k = R.shape
    if r < k or k == 0:
        return np.zeros_like(R)
    S: HostArray = np.linalg.inv(R).conj().T
    S /= np.linalg.norm(S, axis=0)
    return S


@final
class XTrace(TraceEstimator):
    """XTrace: two matvecs and two vectors (a column of Q and of A Q) per probe."""

    method = "xtrace"
    cost = 2
    first_check = 8
    check_growth = 2.0
    mergeable = False
    saved = ("sketch", "AQ", "units")
    stored_as: ClassVar = {"AQ": "products"}

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.sketch = RangeSketch(A, plan)
        self.AQ = Columns(self.space)
        self.resphere = plan.kind in ("sphere", "gaussian")

    def reserve(self, num_probes: int) -> None:
        self.sketch.reserve(num_probes)
        self.AQ.reserve(num_probes)

    def advance(self, start: int, count: int) -> None:
        fresh = self.sketch.extend(count)
        if fresh.shape[1]:
            self.AQ.append(self.A(fresh))

    def summary(self) -> Summary:
        small, size, probes = self._small(), self.space.size, self.sketch.independent_probes()
        distinct = small.of_probes(probes.numbers)
        S = probes.widened(left_out_directions(distinct.R), self.sketch.num_probes)
        samples = leave_one_out(small, size, resphere=self.resphere, S=S)
        value, k = samples.mean().item(), len(probes.numbers)
        left_out = leave_two_out(distinct, size, resphere=self.resphere)
        # An operator of low rank leaves no deviations but rounding, which must not read as zero.
        rounding = 10 * np.finfo(samples.dtype).eps * float(np.abs(np.diag(small.H)).sum())
        residual = float(np.abs(samples - np.trace(small.H)).max())
        jackknife = jackknife_stderr(left_out)
        stderr = coincidence_stderr(self.space, self.plan.kind, jackknife, residual)
        stderr = max(stderr, rounding)
        return Summary(value, stderr, abs(value), stderr, k - 1, samples)

    def _small(self) -> SmallMatrices:
        Z = self.AQ.block
        O, ZW, lengths = self.sketch.against_probes(self.sketch.Q, Z)  # noqa: E741
        H = to_host(self.space.gram(self.sketch.Q, Z))
        self.A.require_finite(H)
        return SmallMatrices(self.sketch.R, H, O, ZW.conj().T, lengths)
