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

from matfree.algorithms.hutchinson import TraceEstimator
from matfree.algorithms.jackknife import jackknife
from matfree.algorithms.plan import Plan
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.sampling import Summary
from matfree.algorithms.sketch import RangeSketch
from matfree.arrays import epsilon, to_host
from matfree.errors import OperatorError


class NystromMatrices(NamedTuple):
    """All that XNysTrace needs to know, in the coordinates of Q (r columns, k probes)."""

    R: HostArray
    """Q^H A W, (r, k)."""
    O: HostArray  # noqa: E741  # the paper's letter
    """Q^H W, (r, k)."""
    G: HostArray
    """W^H W, (k, k)."""

    def only(self, kept: HostArray) -> NystromMatrices:
        """The same for some of the probes."""
        return NystromMatrices(self.R[:, kept], self.O[:, kept], self.G[np.ix_(kept, kept)])


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
    return Nystrom(nu, roots, roots @ roots.conj().T, Y, bool(keep.all()) and top > 0)


def leave_one_out_nystrom(
    small: NystromMatrices, size: int, eps: float, *, resphere: bool
) -> HostArray:
    """The estimates est_i, (k,)."""
    k = small.R.shape[1]
    ny = nystrom(small, size, eps)
    F, nu_W = ny.Y @ ny.roots, ny.nu**2 * (small.G - small.O.conj().T @ small.O)
    total = np.linalg.norm(F) ** 2 + np.trace(ny.roots.conj().T @ nu_W @ ny.roots).real
    total -= ny.nu * size
    if not ny.full_rank:  # leaving one out loses no direction, and nothing is missed
        return np.full(k, total)
    weight = np.diag(ny.inverse).real
    YM = ny.Y @ ny.inverse
    squares = np.sum(np.abs(YM) ** 2, axis=0) / weight
    squares += np.einsum("ji,jl,li->i", ny.inverse.conj(), nu_W, ny.inverse).real / weight
    c = (size - k + 1) * np.diag(np.linalg.inv(small.G)).real if resphere else 1.0
    return np.asarray(total - squares + c / weight)


@final
class XNysTrace(TraceEstimator):
    """One product a probe; Q is kept, num_probes vectors."""

    method = "xnystrace"
    cost = 1
    first_look = 8
    look_growth = 2.0
    mergeable = False
    saved = ("sketch", "units")

    def __init__(self, product: Products, plan: Plan) -> None:
        super().__init__(product, plan)
        self.sketch = RangeSketch(product, plan)
        self.resphere = plan.kind in ("sphere", "gaussian")
        self.eps = epsilon(self.space.xp, self.space.dtype)

    def advance(self, start: int, count: int) -> None:
        self.sketch.extend(count)

    def summary(self) -> Summary:
        small = nystrom_matrices(self.sketch)
        size, eps, resphere = self.space.size, self.eps, self.resphere
        samples = leave_one_out_nystrom(small, size, eps, resphere=resphere)
        value = float(samples.mean())

        def from_some(kept: HostArray) -> complex:
            part = leave_one_out_nystrom(small.only(kept), size, eps, resphere=resphere)
            return complex(part.mean())

        shift = nystrom(small, size, eps).nu * size  # what the shift costs in accuracy
        stderr = max(jackknife(from_some, samples.size), shift)
        return Summary(value, stderr, abs(value), stderr, samples.size - 1, samples)


def nystrom_matrices(sketch: RangeSketch) -> NystromMatrices:
    """R, O and G of a sketch; each pair of probe blocks is made again once."""
    (O,) = sketch.against_probes(sketch.Q)  # noqa: E741
    rows = []
    for W in sketch.probe_blocks():
        rows.append(np.hstack([to_host(sketch.space.gram(W, V)) for V in sketch.probe_blocks()]))
    return NystromMatrices(sketch.R, O, np.vstack(rows))
