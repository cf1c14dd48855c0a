r"""The diagonal from probes whose entries do not have modulus 1, by weighted averages.

Without weights, the sample conj(w_i) (A w)_i contains the term a_ii |w_i|^2, whose variance
is proportional to |a_ii|^2. Bekas, Kokiopoulou and Saad remove it by a division: for m probes

.. math:: d_i = \frac{\sum_j \bar w_{ij} (A w_j)_i}{\sum_j |w_{ij}|^2}.

This is the least-squares solution d_i of (A w)_i = d_i w_i + e, where for Gaussian probes
the residual e = sum_{k != i} a_ik w_k is independent of w_i. Hence

.. math:: \operatorname{stderr}_i^2
    = \frac{\sum_j |(A w_j)_i - d_i w_{ij}|^2}{(m - 1) \sum_j |w_{ij}|^2},

and (d_i - a_ii) / stderr_i has Student's distribution with m - 1 degrees of freedom, exactly so
for real Gaussian probes. In general, it is to first order the error of a ratio of means.

References
----------
C. Bekas, E. Kokiopoulou, Y. Saad (2007), An estimator for the diagonal of a matrix,
doi:10.1016/j.apnum.2007.01.003.
"""

from __future__ import annotations

import math
from typing import ClassVar, final

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.hutchinson import DiagonalEstimator
from matfree.arrays import conjugate, real_part, widest
from matfree.protocol import Array
from matfree.spaces import VectorSpace


@final
class NormalisedDiagonal(DiagonalEstimator):
    """The sum over probes of conj(w) * (A w), divided by the sum of |w|^2."""

    method = "hutchinson"
    mergeable = False  # the mean of two ratios of sums is not the ratio over all probes
    saved = ("fit", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.fit = Slopes(self.space)

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        self.fit.add(W, self.A(W))
        self.A.require_finite(self._norm(self.fit.slope()))

    def summary(self) -> Summary:
        return self._summary(self.fit.slope(), self.fit.stderr(), self.fit.count - 1)


@final
class Slopes:
    """The slopes d of y = d w + e, entry by entry, by least squares over the probes.

    The sums are those of y - c w instead of y, with c the slope of the first block. Otherwise
    the squares of the residuals would be lost to cancellation if the fit is good.
    """

    saved = ("count", "centre", "weights", "products", "squares")
    by_row: ClassVar = dict.fromkeys(("centre", "weights", "products", "squares"), 0)

    def __init__(self, space: VectorSpace) -> None:
        self.xp, self.space = space.xp, space
        self.wide = widest(space.xp, space.dtype, space.device)
        self.count = 0
        zero = self.xp.astype(space.zeros(1)[:, 0], self.wide)
        self.centre: Array = zero
        self.products: Array = zero
        self.weights: Array = real_part(self.xp, zero)
        self.squares: Array = real_part(self.xp, zero)

    def add(self, W: Array, Y: Array) -> None:
        """Add a block of probes W with Y = A W."""
        xp = self.xp
        W, Y = xp.astype(W, self.wide), xp.astype(Y, self.wide)
        weights = xp.sum(self._squared(W), axis=1)
        if self.count == 0:
            self.centre = xp.sum(conjugate(xp, W) * Y, axis=1) / self._divisor(weights)
        rest = Y - self.centre[:, None] * W
        self.products = self.products + xp.sum(conjugate(xp, W) * rest, axis=1)
        self.squares = self.squares + xp.sum(self._squared(rest), axis=1)
        self.weights = self.weights + weights
        self.count += W.shape[1]

    def slope(self) -> Array:
        """d, (rows,)."""
        d = self.centre + self.products / self._divisor(self.weights)
        return self.xp.astype(d, self.space.dtype)

    def stderr(self) -> Array:
        """The standard error of d, (rows,) real; inf after one probe."""
        xp = self.xp
        real = real_part(xp, self.space.zeros(1)[:, 0])
        if self.count < 2:
            return xp.full_like(real, math.inf)
        weights = real_part(xp, self._divisor(self.weights))
        residue = self.squares - self._squared(self.products) / weights
        residue = xp.where(residue > 0, residue, xp.zeros_like(residue))
        return xp.astype(xp.sqrt(residue / (self.count - 1) / weights), real.dtype)

    def _divisor(self, weights: Array) -> Array:
        """The weights, with 1 in place of 0: an entry that is 0 in all probes has no estimate."""
        return self.xp.astype(
            self.xp.where(weights > 0, weights, self.xp.ones_like(weights)), self.wide
        )

    def _squared(self, x: Array) -> Array:
        return real_part(self.xp, conjugate(self.xp, x) * x)
