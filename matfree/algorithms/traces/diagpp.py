r"""Diag++ and deflation: an exact diagonal on a subspace, and Hutchinson on its complement.

For a Hermitian A, orthonormal columns Q and the projector P = Q Q^H,

.. math:: A = P A + A P - P A P + (I - P) A (I - P).

The diagonal of the first three terms follows from A Q. The variant of the method that omits the
cross terms P A and A P is biased. The last term is sampled.

References
----------
R. A. Baston, Y. Nakatsukasa (2022), Stochastic diagonal estimation: probabilistic bounds
and an improved algorithm, arXiv:2201.10684.
"""

from __future__ import annotations

from typing import Any, ClassVar, final

import numpy as np

from matfree import probes
from matfree.algorithms.eigen.deflation import Deflation
from matfree.algorithms.eigen.orthogonal_complement import project_onto_complement
from matfree.algorithms.low_rank.range_sketch import RangeSketch
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import DiagonalEstimator, Moments
from matfree.algorithms.traces.hutchpp import sketch_columns
from matfree.arguments import slices
from matfree.arrays import conjugate, real_part, to_host
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


class ResidualDiagonal(DiagonalEstimator):
    """The exact diagonal of one term of A, plus Hutchinson samples of the other."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.known: Array = self.space.zeros(1)[:, 0]
        self.moments = Moments(self.space)

    def residual(self, W: Array) -> Array:
        """The term of A whose diagonal is sampled, applied to probes."""
        raise NotImplementedError

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        self.moments.add(conjugate(self.space.xp, W) * self.residual(W))
        self.A.require_finite(self._norm(self.moments.mean))

    def summary(self) -> Summary:
        value = self.known + self.moments.mean
        return self._summary(value, self.moments.stderr(), self.moments.count - 1)


@final
class DiagPlusPlus(ResidualDiagonal):
    """Diag++: a third of the matvecs for Q, a third for A Q, and a third for sampling."""

    method = "diag++"
    mergeable = False  # the sketch would be counted in every run
    saved = ("sketch", "twice", "H", "moments", "units")
    by_row: ClassVar = {"twice": 0}

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.sketch = RangeSketch(A, plan, stream=probes.SKETCH)
        self.twice: Array = self.known  # diag(P A + A P), summed over the columns of Q
        self.H: HostArray = np.zeros((0, 0))  # Q^H A Q

    def identity(self, budget: int) -> dict[str, Any]:
        return {"columns of the sketch": sketch_columns(self.plan, budget)}

    def prepare(self, budget: int) -> int:
        columns, sketch = sketch_columns(self.plan, budget), self.sketch
        sketch.reserve(columns)
        sketch.complete(columns, self.block_done)
        for part in slices(sketch.rank, self.plan.block_size, self.H.shape[1]):
            Q = sketch.Q[:, part]
            Z = self.A(Q)
            fresh = to_host(self.space.gram(sketch.Q, Z))
            self.H = np.hstack((self.H, fresh)) if part.start else fresh
            # diag(P A + A P) = 2 Re diag(Q (A Q)^H), because A is Hermitian.
            self.twice = self.twice + 2 * row_dots(self.space, Q, Z)
            self.block_done()
        require_hermitian_core(self.A, self.H)
        self.known = self.twice  # minus diag(P A P) = diag(Q H Q^H)
        for part in slices(sketch.rank, self.plan.block_size):
            QH = sketch.Q @ self.space.asarray(self.H[:, part])
            self.known = self.known - row_dots(self.space, QH, sketch.Q[:, part])
        if self.plan.num_probes is not None:
            return self.plan.num_probes - columns
        return max(0, budget - columns - sketch.rank)

    def residual(self, W: Array) -> Array:
        Q = self.sketch.Q
        return project_onto_complement(
            self.space, Q, self.A(project_onto_complement(self.space, Q, W))
        )


@final
class DeflatedDiagonal(ResidualDiagonal):
    """diag(U Theta U^H), plus samples of A - U Theta U^H: unbiased even for inaccurate pairs."""

    method = "deflated"
    saved = ("pairs", "moments", "units")

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
        self.U = self.pairs.vectors
        self.scaled = self.U * self.space.asarray(self.pairs.values)[None, :]
        self.known = row_dots(self.space, self.U, self.scaled)
        return super().prepare(budget - self.pairs.cost)

    def residual(self, W: Array) -> Array:
        coordinates = self.space.xp.astype(self.space.gram(self.U, W), self.space.dtype)
        return self.A(W) - self.scaled @ coordinates


def row_dots(space: VectorSpace, X: Array, Y: Array) -> Array:
    """diag(X Y^H) for a Hermitian X Y^H + Y X^H: real, (rows,), in the space's dtype."""
    xp, total = space.xp, real_part(space.xp, space.zeros(1)[:, 0])
    for part in slices(X.shape[1], 8):  # all columns at once would need a third block
        total = total + xp.sum(real_part(xp, X[:, part] * conjugate(xp, Y[:, part])), axis=1)
    return xp.astype(total, space.dtype)


def require_hermitian_core(A: CountedOperator, H: HostArray) -> None:
    """Raise NotHermitianError if the projection H = Q^H A Q is not Hermitian."""
    scale = float(np.linalg.norm(H, ord=2)) if H.size else 0.0
    A.require_finite(H)
    if scale > 0:
        A.require_hermitian(float(np.linalg.norm(H - H.conj().T, ord=2)) / scale)
