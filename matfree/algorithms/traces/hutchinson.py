r"""Girard-Hutchinson estimators of the trace and the diagonal.

With E[w w^H] = I,

    E[w^H A w] = tr A        and, for entries of modulus 1,        E[conj(w) * (A w)] = diag A,

so averages over probes w estimate both from products alone. For signs the variance of
one probe is 2 (||S||_F^2 - sum_i s_ii^2) with S the symmetric part of a real A: the
diagonal does not contribute, and a diagonal matrix is seen exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator, Summary
from matfree.algorithms.running.plan import Plan
from matfree.arguments import slices
from matfree.arrays import conjugate, real_part, to_host, widest
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


class TraceEstimator(Estimator):
    """Whatever estimates a trace: its exact answer is a sum over unit vectors."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.units = UnitVectors(A, plan, 0.0)

    def exact(self) -> Summary:
        for E, Y in self.units.products():
            entries = to_host(self.space.dots(E, Y))
            self.A.require_finite(entries)
            self.units.add(entries.sum().item(), E.shape[1])
            self.block_done()
        total = self.units.total
        return Summary(total, 0.0, abs(total), 0.0, math.inf)


class DiagonalEstimator(Estimator):
    """Whatever estimates a diagonal: its exact answer is read off unit vectors."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.units = UnitVectors(A, plan, self.space.zeros(1)[:, 0])

    def exact(self) -> Summary:
        for E, Y in self.units.products():
            self.units.add(self.space.xp.sum(E * Y, axis=1), E.shape[1])
            self.A.require_finite(self._size(self.units.total))
            self.block_done()
        entries = self.units.total
        zeros = self.space.xp.zeros_like(real_part(self.space.xp, entries))
        return Summary(entries, zeros, float(self._size(entries)[0]), 0.0, math.inf)

    def _size(self, x: Array) -> HostArray:
        x = self.space.xp.astype(x, self.space.dtype)
        return to_host(self.space.norms(x[:, None]))

    def _summary(self, value: Array, stderr: Array, degrees_of_freedom: float) -> Summary:
        size = float(self._size(value)[0])
        bar = float(self._size(stderr)[0]) if degrees_of_freedom > 0 else math.inf
        return Summary(value, stderr, size, bar, degrees_of_freedom)


@final
class UnitVectors:
    """The exact answer under way: a sum over unit vectors, as far as it got."""

    saved = ("done", "total")

    def __init__(self, A: CountedOperator, plan: Plan, zero: Any) -> None:
        self.A, self.block_size = A, plan.block_size
        self.done, self.total = 0, zero
        self.by_row = {} if isinstance(zero, float) else {"total": 0}

    def products(self) -> Iterator[tuple[Array, Array]]:
        """Blocks of the unit vectors that are left, and their products."""
        for part in slices(self.A.space.size, self.block_size, self.done):
            E = self.A.space.unit_vectors(range(part.start, part.stop))
            yield E, self.A(E)

    def add(self, part: Any, count: int) -> None:
        """Take in what a block of ``count`` unit vectors contributes."""
        self.total, self.done = self.total + part, self.done + count


@final
class HutchinsonTrace(TraceEstimator):
    """One number per probe, w^H A w, and their mean."""

    method = "hutchinson"
    saved = ("samples", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.samples = Samples()

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        fresh = to_host(self.A.quadratic_forms(W))
        self.A.require_finite(fresh)
        self.samples.add(fresh)

    def summary(self) -> Summary:
        return self.samples.summary()


@final
class HutchinsonDiagonal(DiagonalEstimator):
    """One vector per probe, conj(w) * (A w), and their mean."""

    method = "hutchinson"
    saved = ("moments", "units")

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        super().__init__(A, plan)
        self.moments = Moments(self.space)

    def advance(self, start: int, count: int) -> None:
        W = self.probes(start, count)
        self.moments.add(conjugate(self.space.xp, W) * self.A(W))
        self.A.require_finite(self._size(self.moments.mean))

    def summary(self) -> Summary:
        return self._summary(self.moments.mean, self.moments.stderr(), self.moments.count - 1)


@final
class Samples:
    """Independent samples of a number, their mean and its standard error."""

    saved = ("values",)

    def __init__(self) -> None:
        self.values: HostArray = np.zeros(0)

    def add(self, samples: HostArray) -> None:
        """Take in the samples of a block of probes."""
        self.values = np.concatenate((self.values, samples)) if self.values.size else samples

    def summary(self) -> Summary:
        samples = self.values
        mean, count = samples.mean().item(), samples.size
        stderr = math.inf
        if count > 1:
            deviations = np.abs(samples - mean)
            stderr = math.sqrt(float(deviations @ deviations) / (count * (count - 1)))
        return Summary(mean, stderr, abs(mean), stderr, count - 1, samples)


@final
class Moments:
    """Running mean and squared deviations of vectors, entry by entry.

    Blocks are merged by the update of Chan, Golub and LeVeque (1983), which does not
    cancel: an entry that every probe sees alike has exactly no spread.
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
        """Take in a block of samples, one a column."""
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
        """|x|^2 in double: squares leave the range of float32 where x is far within it."""
        if x.dtype != self.wide:
            x = self.xp.astype(x, self.wide)
        return real_part(self.xp, conjugate(self.xp, x) * x)
