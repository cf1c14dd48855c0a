r"""Girard-Hutchinson estimators of the trace and the diagonal.

For random vectors w with E[w w^H] = I,

.. math:: E[w^H A w] = \operatorname{tr} A, \qquad E[\bar w * (A w)] = \operatorname{diag} A,

where the second identity needs entries of modulus 1. Averages over probes w estimate both from
matvecs alone. For random signs and a real A with symmetric part S, the variance of one sample
of the trace is

.. math:: 2 \left(\|S\|_F^2 - \sum_i s_{ii}^2\right).

The diagonal does not contribute, so that the trace of a diagonal matrix is exact.

References
----------
A. Girard (1989), doi:10.1007/BF01395775. M. F. Hutchinson (1990),
doi:10.1080/03610919008812866. C. Bekas, E. Kokiopoulou, Y. Saad (2007),
doi:10.1016/j.apnum.2007.01.003.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator, Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.product_variance import ProductVariance
from matfree.arguments import slices
from matfree.arrays import conjugate, real_part, to_host, widest
from matfree.protocol import Array, HostArray
from matfree.results.intervals import mean_error
from matfree.spaces import VectorSpace


class TraceEstimator(Estimator):
    """Base class of the trace estimators: the exact trace is a sum over unit vectors."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.units = UnitVectors(A, plan, 0.0)

    def exact(self) -> Summary:
        for E, Y in self.units.remaining():
            entries = to_host(self.space.dots(E, Y))
            self.A.require_finite(entries)
            self.units.add(entries.sum().item(), E.shape[1])
            self.block_done()
        total = self.units.total
        return Summary(total, 0.0, abs(total), 0.0, math.inf)


class DiagonalEstimator(Estimator):
    """Base class of the diagonal estimators: unit vectors give the exact entries."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.units = UnitVectors(A, plan, self.space.zeros(1)[:, 0])

    def exact(self) -> Summary:
        for E, Y in self.units.remaining():
            # Row i of E has a 1 in the column of unit vector i, if the block contains it.
            self.units.add(self.space.xp.sum(E * Y, axis=1), E.shape[1])
            self.A.require_finite(self._norm(self.units.total))
            self.block_done()
        entries = self.units.total
        zeros = self.space.xp.zeros_like(real_part(self.space.xp, entries))
        return Summary(entries, zeros, float(self._norm(entries)[0]), 0.0, math.inf)

    def _norm(self, x: Array) -> HostArray:
        """||x||_2 over all rows, on the host, (1,)."""
        x = self.space.xp.astype(x, self.space.dtype)
        return to_host(self.space.norms(x[:, None]))

    def _summary(self, value: Array, stderr: Array, degrees_of_freedom: float) -> Summary:
        norm = float(self._norm(value)[0])
        stderr_norm = float(self._norm(stderr)[0]) if degrees_of_freedom > 0 else math.inf
        return Summary(value, stderr, norm, stderr_norm, degrees_of_freedom)


@final
class UnitVectors:
    """A sum over all unit vectors, which can be interrupted and resumed after every block."""

    saved = ("done", "total")

    def __init__(self, A: CountedOperator, plan: Plan, zero: Any) -> None:
        self.A, self.block_size = A, plan.block_size
        self.done, self.total = 0, zero
        self.by_row = {} if isinstance(zero, float) else {"total": 0}

    def remaining(self) -> Iterator[tuple[Array, Array]]:
        """The remaining unit vectors E in blocks, each with A E."""
        for part in slices(self.A.space.size, self.block_size, self.done):
            E = self.A.space.unit_vectors(range(part.start, part.stop))
            yield E, self.A(E)

    def add(self, term: Any, count: int) -> None:
        """Add the contribution of a block of ``count`` unit vectors."""
        self.total, self.done = self.total + term, self.done + count


class SampledTrace(TraceEstimator):
    """Base class of traces with one sample per probe, w^H B w, plus a known number."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.inside: complex = 0.0
        """The trace of A - B, which is known."""
        self.samples = Samples(plan.kind, A.space.size)
        self.variance = ProductVariance(A.space, plan.kind)

    def product(self, W: Array) -> Array:
        """B W."""
        return self.A(W)

    def forms(self, W: Array) -> Array:
        """w_j^H B w_j, (k,), where nothing else is needed of the products."""
        return self.A.quadratic_forms(W)

    def advance(self, start: int, count: int) -> None:
        fresh, deviations = self.measured(self.probes(start, count))
        self.A.require_finite(fresh)
        self.samples.add(fresh + self.inside, deviations)

    def measured(self, W: Array) -> tuple[HostArray, HostArray | None]:
        """The numbers w_j^H B w_j, and their deviations if B may be Hermitian."""
        if not self.variance.check.passed:
            return to_host(self.forms(W)), None
        return self.variance.add(partial(self.probes, 0, 1), W, self.product(W))

    def summary(self) -> Summary:
        return self.samples.summary(self.variance.check.hermitian)


@final
class HutchinsonTrace(SampledTrace):
    """The mean of one number per probe, w^H A w."""

    method = "hutchinson"
    saved = ("samples", "variance", "units")

    def measured(self, W: Array) -> tuple[HostArray, HostArray | None]:
        variance = self._known_variance
        if variance is None:
            return super().measured(W)
        # Of random signs there is one deviation fewer, as in a run whose variance is not known.
        skipped = int(self.variance.discrete and not self.samples.values.size)
        return to_host(self.forms(W)), np.full(W.shape[1] - skipped, math.sqrt(variance))

    def summary(self) -> Summary:
        if self._known_variance is None:
            return super().summary()
        return self.samples.summary()

    @property
    def _known_variance(self) -> float | None:
        """The variance of a sample, for an operator whose entries show it."""
        return self.A.form_variance(self.plan.kind)


@final
class HutchinsonDiagonal(DiagonalEstimator):
    """The mean of one vector per probe, conj(w) * (A w)."""

    method = "hutchinson"
    saved = ("moments", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.moments = Moments(self.space)

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        self.moments.add(conjugate(self.space.xp, W) * self.A(W))
        self.A.require_finite(self._norm(self.moments.mean))

    def summary(self) -> Summary:
        return self._summary(self.moments.mean, self.moments.stderr(), self.moments.count - 1)


@final
class Samples:
    """Independent samples of a number, with their mean and its standard error.

    Parameters
    ----------
    kind : str
        The distribution of the probes.
    size : int
        The size of the operator.
    """

    saved = ("values", "deviations")

    def __init__(self, kind: str, size: int) -> None:
        self.kind, self.size = kind, size
        self.values: HostArray = np.zeros(0)
        self.deviations: HostArray = np.zeros(0)
        """Numbers whose mean square is the variance of a sample; see ``mean_error``."""

    def add(self, samples: HostArray, deviations: HostArray | None = None) -> None:
        """Append the samples of a block of probes, and their deviations if these are known."""
        self.values = np.concatenate((self.values, samples)) if self.values.size else samples
        if deviations is not None:
            self.deviations = np.concatenate((self.deviations, deviations))

    def summary(self, hermitian: bool = True) -> Summary:
        """The mean of the samples and its standard error.

        Parameters
        ----------
        hermitian : bool
            Whether the deviations may be used.
        """
        samples, deviations = self.values, self.deviations if hermitian else None
        # Checkpoints of version 0.1 hold samples without deviations.
        missing = samples.size - self.deviations.size
        if missing not in (0, 1) or (missing == 1 and self.kind not in ("rademacher", "z4")):
            deviations = None
        mean = samples.mean().item()
        stderr, degrees = mean_error(samples, deviations, kind=self.kind, size=self.size)
        return Summary(mean, stderr, abs(mean), stderr, degrees, samples, deviations=deviations)


@final
class Moments:
    """The running mean and the sum of squared deviations of vectors, entry by entry.

    Blocks are combined by the update of Chan, Golub and LeVeque (1983), doi:10.2307/2683386.
    It has no cancellation: an entry with equal samples gets a standard error of exactly 0.
    """

    saved = ("count", "mean", "squares")
    by_row: ClassVar = {"mean": 0, "squares": 0}

    def __init__(self, space: VectorSpace) -> None:
        self.xp = space.xp
        self.count = 0
        self.mean: Array = space.zeros(1)[:, 0]
        self.wide = widest(space.xp, space.dtype, space.device)
        self.squares: Array = self._squared(self.mean)

    def add(self, samples: Array) -> None:
        """Add a block of samples, one per column."""
        xp, b = self.xp, samples.shape[1]
        mean = xp.sum(samples, axis=1) / b
        squares = xp.sum(self._squared(samples - mean[:, None]), axis=1)
        step, total = mean - self.mean, self.count + b
        self.squares = self.squares + squares + self._squared(step) * (self.count * b / total)
        self.mean = self.mean + step * (b / total)
        self.count = total

    def stderr(self) -> Array:
        """The standard error of the mean, entry by entry; inf after one sample."""
        real = real_part(self.xp, self.mean)
        if self.count < 2:
            return self.xp.full_like(real, math.inf)
        variance = self.squares / (self.count * (self.count - 1))
        return self.xp.astype(self.xp.sqrt(variance), real.dtype)

    def _squared(self, x: Array) -> Array:
        """|x|^2 in double precision, because the squares may overflow or underflow in single."""
        if x.dtype != self.wide:
            x = self.xp.astype(x, self.wide)
        return real_part(self.xp, conjugate(self.xp, x) * x)
