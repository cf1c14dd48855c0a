r"""Hutch++ and deflation: what a subspace knows exactly, plus Hutchinson for the rest.

For any orthonormal Q and P = Q Q^H,

    tr A = tr(Q^H A Q) + tr((I - P) A (I - P)),

and the second part is estimated by Hutchinson, with the variance of what Q missed. Hutch++
takes Q from a random sketch of the range; ``deflated`` takes eigenvectors, which serve the
diagonal and the density as well.

References
----------
R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff (2021), Hutch++: optimal stochastic trace
estimation, doi:10.1137/1.9781611976496.16, arXiv:2010.09649.
"""

from __future__ import annotations

from typing import final

import numpy as np

from matfree import probes
from matfree.algorithms.deflation import eigenpairs_for
from matfree.algorithms.hutchinson import Samples, TraceEstimator
from matfree.algorithms.plan import Plan, slices
from matfree.algorithms.products import Products
from matfree.algorithms.sampling import Summary
from matfree.algorithms.sketch import RangeSketch
from matfree.arrays import to_host
from matfree.protocol import Array
from matfree.spaces import RowSpace

ADAPTIVE_SKETCH = 32
"""Columns of the sketch where a tolerance says when to stop: it is drawn beforehand."""


class ResidualTrace(TraceEstimator):
    """tr(Q^H A Q), known, plus Hutchinson samples outside of Q."""

    def __init__(self, product: Products, plan: Plan) -> None:
        super().__init__(product, plan)
        self.Q: Array = self.space.zeros(0)
        self.inside: complex = 0.0
        self.samples = Samples()

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        W = outside(self.space, self.Q, W)
        fresh = to_host(self.space.dots(W, self.product(W)))
        self.product.require_finite(fresh)
        self.samples.add(fresh + self.inside)

    def summary(self) -> Summary:
        return self.samples.summary()


@final
class HutchPlusPlus(ResidualTrace):
    """A third of the products for the range, a third inside it, a third outside."""

    method = "hutch++"
    mergeable = False

    def prepare(self, budget: int) -> int:
        planned = self.plan.num_probes
        columns = sketch_columns(self.plan, budget)
        self.Q, self.inside = sketched_range(self.product, self.plan, columns)
        if planned is not None:
            return planned - columns
        return max(0, budget - columns - int(self.Q.shape[1]))


@final
class DeflatedTrace(ResidualTrace):
    """Eigenvectors inside, Hutchinson outside; exact inside even if they are rough."""

    method = "deflated"

    def prepare(self, budget: int) -> int:
        pairs, cost = eigenpairs_for(self.product, self.plan, budget)
        self.Q = pairs.vectors
        self.inside = float(np.sum(pairs.values))
        return super().prepare(budget - cost)


def outside(space: RowSpace, Q: Array, W: Array) -> Array:
    """(I - Q Q^H) W."""
    return W - Q @ space.xp.astype(space.gram(Q, W), space.dtype)


def sketch_columns(plan: Plan, budget: int) -> int:
    """How many of the vectors go into the sketch: half of the probes, a third of a budget."""
    if plan.num_probes is not None:
        return plan.num_probes // 2
    third = budget // 3
    return min(third, ADAPTIVE_SKETCH) if plan.adaptive else third


def sketched_range(product: Products, plan: Plan, columns: int) -> tuple[Array, complex]:
    """Q from a random sketch and tr(Q^H A Q): ``columns`` products, and one per column of Q."""
    sketch = RangeSketch(product, plan, stream=probes.SKETCH)
    sketch.reserve(columns)
    sketch.extend(columns)
    inside: complex = 0.0
    for part in slices(sketch.rank, plan.block_size):
        Q = sketch.Q[:, part]
        entries = to_host(product.space.dots(Q, product(Q)))
        product.require_finite(entries)
        inside += entries.sum().item()
    return sketch.Q, inside
