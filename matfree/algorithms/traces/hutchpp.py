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

from typing import Any, final

import numpy as np

from matfree import probes
from matfree.algorithms.eigen.deflation import Deflation
from matfree.algorithms.eigen.orthogonal_complement import project_onto_complement
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import Samples, TraceEstimator
from matfree.algorithms.traces.range_sketch import RangeSketch
from matfree.arguments import slices
from matfree.arrays import to_host
from matfree.protocol import Array

ADAPTIVE_SKETCH = 32
"""Columns of the sketch where a tolerance says when to stop: it is drawn beforehand."""


class ResidualTrace(TraceEstimator):
    """tr(Q^H A Q), known, plus Hutchinson samples outside of Q."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.Q: Array = self.space.zeros(0)
        self.inside: complex = 0.0
        self.samples = Samples()

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        W = project_onto_complement(self.space, self.Q, W)
        fresh = to_host(self.space.dots(W, self.A(W)))
        self.A.require_finite(fresh)
        self.samples.add(fresh + self.inside)

    def summary(self) -> Summary:
        return self.samples.summary()


@final
class HutchPlusPlus(ResidualTrace):
    """A third of the products for the range, a third inside it, a third outside."""

    method = "hutch++"
    mergeable = False
    saved = ("sketch", "inside", "num_inside", "samples", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.sketch = RangeSketch(A, plan, stream=probes.SKETCH)
        self.num_inside = 0

    def identity(self, budget: int) -> dict[str, Any]:
        return {"columns of the sketch": sketch_columns(self.plan, budget)}

    def prepare(self, budget: int) -> int:
        columns = sketch_columns(self.plan, budget)
        self.sketch.reserve(columns)
        self.sketch.complete(columns, self.block_done)
        self.Q = self.sketch.Q
        for part in slices(self.sketch.rank, self.plan.block_size, self.num_inside):
            Q = self.Q[:, part]  # tr(Q^H A Q), a product a column
            entries = to_host(self.space.dots(Q, self.A(Q)))
            self.A.require_finite(entries)
            self.inside += entries.sum().item()
            self.num_inside = part.stop
            self.block_done()
        if self.plan.num_probes is not None:
            return self.plan.num_probes - columns
        return max(0, budget - columns - self.sketch.rank)


@final
class DeflatedTrace(ResidualTrace):
    """Eigenvectors inside, Hutchinson outside; exact inside even if they are rough."""

    method = "deflated"
    saved = ("pairs", "samples", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.pairs = Deflation(A, plan)

    def prepare(self, budget: int) -> int:
        self.pairs.find(budget, self.checkpoint)
        self.Q = self.pairs.vectors
        self.inside = float(np.sum(self.pairs.values))
        return super().prepare(budget - self.pairs.cost)


def sketch_columns(plan: Plan, budget: int) -> int:
    """How many of the vectors go into the sketch: half of the probes, a third of a budget."""
    if plan.num_probes is not None:
        return plan.num_probes // 2
    third = budget // 3
    return min(third, ADAPTIVE_SKETCH) if plan.adaptive else third
