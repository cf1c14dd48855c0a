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

from matfree.algorithms.estimator import Summary
from matfree.algorithms.hutchinson import TraceEstimator
from matfree.algorithms.jackknife import jackknife
from matfree.algorithms.plan import Plan
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.sketch import Columns, RangeSketch
from matfree.arrays import to_host


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

    def only(self, kept: HostArray) -> SmallMatrices:
        """The same for some of the probes: their products span a smaller range Q G."""
        R = self.R[:, kept]
        if R.shape[0] < self.R.shape[1]:  # rank-deficient: the others span the range as well
            G = np.eye(R.shape[0])
        else:
            G = np.linalg.qr(R)[0]
        return SmallMatrices(
            R=G.conj().T @ R,
            H=G.conj().T @ self.H @ G,
            O=G.conj().T @ self.O[:, kept],
            N=self.N[kept, :] @ G,
            lengths=self.lengths[kept],
        )


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
    something = missed > 1e-12 * lengths  # a sketch of the whole space misses nothing
    scale = np.where(something, free, 0.0) / np.where(something, missed, 1.0)
    return np.asarray(inside + outside * scale)


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
    first_look = 8
    look_growth = 2.0
    mergeable = False
    saved = ("sketch", "products", "units")

    def __init__(self, product: Products, plan: Plan) -> None:
        super().__init__(product, plan)
        self.sketch = RangeSketch(product, plan)
        self.products = Columns(self.space)  # Z = A Q
        self.resphere = plan.kind in ("sphere", "gaussian")

    def reserve(self, num_probes: int) -> None:
        self.sketch.reserve(num_probes)
        self.products.reserve(num_probes)

    def advance(self, start: int, count: int) -> None:
        fresh = self.sketch.extend(count)
        if fresh.shape[1]:
            self.products.append(self.product(fresh))

    def summary(self) -> Summary:
        small = self._small()
        samples = leave_one_out(small, self.space.size, resphere=self.resphere)
        value, k = samples.mean().item(), samples.size

        def from_some(kept: HostArray) -> complex:
            part = leave_one_out(small.only(kept), self.space.size, resphere=self.resphere)
            return complex(part.mean())

        rounding = 10 * np.finfo(samples.dtype).eps * float(np.abs(np.diag(small.H)).sum())
        stderr = max(jackknife(from_some, k), rounding)
        return Summary(value, stderr, abs(value), stderr, k - 1, samples)

    def _small(self) -> SmallMatrices:
        Z = self.products.block
        O, ZW, lengths = self.sketch.against_probes(self.sketch.Q, Z)  # noqa: E741
        H = to_host(self.space.gram(self.sketch.Q, Z))
        self.product.require_finite(H)
        return SmallMatrices(self.sketch.R, H, O, ZW.conj().T, lengths)
