r"""Girard-Hutchinson estimators of the trace and the diagonal.

With E[w w^H] = I,

    E[w^H A w] = tr A        and, for entries of modulus 1,        E[conj(w) * (A w)] = diag A,

so averages over probes w estimate both from products alone. For signs the variance of
one probe is 2 (||S||_F^2 - sum_i s_ii^2) with S the symmetric part of a real A: the
diagonal does not contribute, and a diagonal matrix is seen exactly.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np

from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.sampling import Accumulator, Summary
from matfree.arrays import conjugate, real_part, to_host
from matfree.protocol import Array


@final
class TraceSamples(Accumulator):
    """One number per probe: w^H A w."""

    method = "hutchinson"

    def __init__(self, product: Products) -> None:
        self.space = product.space
        self.blocks: list[HostArray] = []
        self.units: list[HostArray] = []

    def add(self, W: Array, Y: Array) -> HostArray:
        samples = to_host(self.space.dots(W, Y))
        self.blocks.append(samples)
        return samples

    def add_exact(self, E: Array, Y: Array) -> HostArray:
        entries = to_host(self.space.dots(E, Y))
        self.units.append(entries)
        return entries

    def summary(self, num_probes: int) -> Summary:
        samples = np.concatenate(self.blocks)
        mean = samples.mean().item()
        deviations = np.abs(samples - mean)
        stderr = math.inf
        if num_probes > 1:
            stderr = math.sqrt(float(deviations @ deviations) / (num_probes * (num_probes - 1)))
        return Summary(mean, stderr, abs(mean), stderr, samples)

    def exact(self) -> Summary:
        total = np.concatenate(self.units).sum().item()
        return Summary(total, 0.0, abs(total), 0.0, None)


@final
class DiagonalMoments(Accumulator):
    """Running mean and squared deviations of conj(w) * (A w), entry by entry.

    Blocks are merged by the update of Chan, Golub and LeVeque (1983), which does not
    cancel: an entry that every probe sees alike has exactly no spread.
    """

    method = "hutchinson"

    def __init__(self, product: Products) -> None:
        self.space = product.space
        self.count = 0
        self.mean: Array = product.space.zeros(1)[:, 0]
        self.squares: Array = real_part(self.space.xp, self.mean)
        self.entries: Array = self.mean

    def add(self, W: Array, Y: Array) -> HostArray:
        xp, b = self.space.xp, W.shape[1]
        samples = conjugate(xp, W) * Y
        mean = xp.sum(samples, axis=1) / b
        squares = xp.sum(_squared(xp, samples - mean[:, None]), axis=1)
        step, total = mean - self.mean, self.count + b
        self.squares = self.squares + squares + _squared(xp, step) * (self.count * b / total)
        self.mean = self.mean + step * (b / total)
        self.count = total
        return self._size(self.mean)

    def add_exact(self, E: Array, Y: Array) -> HostArray:
        self.entries = self.entries + self.space.xp.sum(E * Y, axis=1)
        return self._size(self.entries)

    def summary(self, num_probes: int) -> Summary:
        xp = self.space.xp
        if num_probes > 1:
            stderr = xp.sqrt(self.squares / (num_probes * (num_probes - 1)))
        else:
            stderr = xp.full_like(self.squares, math.inf)
        size = float(self._size(self.mean)[0])
        bar = float(self._size(xp.astype(stderr, self.space.dtype))[0])
        return Summary(self.mean, stderr, size, bar, None)

    def exact(self) -> Summary:
        zeros = self.space.xp.zeros_like(self.squares)
        return Summary(self.entries, zeros, float(self._size(self.entries)[0]), 0.0, None)

    def _size(self, x: Array) -> HostArray:
        return to_host(self.space.norms(x[:, None]))


def _squared(xp: Any, x: Array) -> Array:
    return real_part(xp, conjugate(xp, x) * x)
