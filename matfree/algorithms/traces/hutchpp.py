r"""Hutch++ and deflation: the exact trace on a subspace, and Hutchinson on its complement.

For any orthonormal columns Q and the projector P = Q Q^H,

.. math:: \operatorname{tr} A = \operatorname{tr}(Q^H A Q)
    + \operatorname{tr}\left((I - P) A (I - P)\right).

The second term is sampled, with a variance that depends only on (I - P) A (I - P). Hutch++
takes Q from a random sketch of the range of A. The method "deflated" takes eigenvectors, which
can be shared with the diagonal and the spectral density.

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
from matfree.algorithms.low_rank.range_sketch import RangeSketch
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import SampledTrace
from matfree.arguments import slices
from matfree.arrays import to_host
from matfree.protocol import Array

ADAPTIVE_SKETCH = 32
"""The largest number of columns of the sketch if there is a tolerance.

The sketch comes first, when it is not known how many samples the tolerance will need.
"""


class ResidualTrace(SampledTrace):
    """The exact trace on the range of Q, plus Hutchinson samples on its complement."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.Q: Array = self.space.zeros(0)

    def product(self, W: Array) -> Array:
        # Twice, because the variance is that of (I - P) A (I - P).
        Z = self.A(project_onto_complement(self.space, self.Q, W))
        return project_onto_complement(self.space, self.Q, Z)

    def forms(self, W: Array) -> Array:
        W = project_onto_complement(self.space, self.Q, W)
        return self.space.dots(W, self.A(W))


@final
class HutchPlusPlus(ResidualTrace):
    """Hutch++: a third of the matvecs for Q, a third for Q^H A Q, and a third for sampling."""

    method = "hutch++"
    mergeable = False  # the sketch would be counted in every run
    saved = ("sketch", "inside", "num_inside", "samples", "variance", "units")

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
            Q = self.Q[:, part]
            entries = to_host(self.space.dots(Q, self.A(Q)))
            self.A.require_finite(entries)
            self.inside += entries.sum().item()
            self.num_inside = part.stop
            self.block_done()
        if self.plan.num_probes is not None:
            return self.plan.num_probes - columns
        # The sketch took one matvec per column, and tr(Q^H A Q) one per vector of the basis.
        return max(0, budget - columns - self.sketch.rank)


@final
class DeflatedTrace(ResidualTrace):
    """Hutchinson outside the span of eigenvectors U, and the sum of u_i^H A u_i inside.

    The identity holds for any orthonormal vectors, so that inaccurate eigenpairs cause no bias.
    """

    method = "deflated"
    saved = ("pairs", "samples", "variance", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.pairs = Deflation(A, plan)

    @property
    def least_matvecs(self) -> int:
        return self.pairs.least_matvecs

    @property
    def unit(self) -> str:
        return "a search for eigenpairs, or a test of given ones, with one probe"

    def prepare(self, budget: int) -> int:
        self.pairs.find(budget, self.checkpoint)
        self.Q = self.pairs.vectors
        self.inside = float(np.sum(self.pairs.values))
        return super().prepare(budget - self.pairs.cost)


def sketch_columns(plan: Plan, budget: int) -> int:
    """The number of columns of the sketch: half of the probes, or a third of the budget."""
    if plan.num_probes is not None:
        return plan.num_probes // 2
    third = budget // 3
    return min(third, ADAPTIVE_SKETCH) if plan.adaptive else third
