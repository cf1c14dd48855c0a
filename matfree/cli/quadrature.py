"""What a quadrature of a spectrum says of parts of it, with intervals that hold."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from matfree.results import SpectralDensity
from matfree.results.estimate import student_quantile

HostArray = np.ndarray[Any, Any]


class Share(NamedTuple):
    """A part of the eigenvalues, with an interval that holds it."""

    value: float
    low: float
    high: float
    rounding: float = 0.0
    """What sums of weights may be off by."""

    def holds(self, exact: float) -> bool:
        """Whether the interval holds a value, give or take rounding."""
        return self.low - self.rounding <= exact <= self.high + self.rounding


def negative_share(density: SpectralDensity) -> Share:
    """The fraction of negative eigenvalues, between bounds that count every error.

    m nodes know a distribution function only up to the weights next to the point (the
    Markov-Stieltjes inequalities), unless Lanczos ended early, which makes them exact.
    The sampling error of the probes comes on top.
    """
    zero = -density.noise_floor
    below, low, high = [], [], []
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        j = int(np.searchsorted(nodes, zero))
        mass = float(weights[:j].sum())
        exact = len(nodes) < density.num_steps or len(nodes) == density.size
        below.append(mass)
        low.append(mass if exact or j == 0 else mass - float(weights[j - 1]))
        high.append(mass if exact or j == len(nodes) else mass + float(weights[j]))
    return Share(
        float(np.mean(below)),
        max(0.0, float(np.mean(low)) - _half_width(low)),
        min(1.0, float(np.mean(high)) + _half_width(high)),
        density.num_steps * density.epsilon,
    )


def exact_negative_share(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """The same fraction of the exact eigenvalues, counted from the same noise floor."""
    return float(np.mean(eigenvalues < -density.noise_floor))


def count_between(density: SpectralDensity, low: float, high: float) -> Share:
    """How many eigenvalues lie in [low, high], with the probes' 95 % interval."""
    counts = [
        density.size * float(weights[(low <= nodes) & (nodes <= high)].sum())
        for nodes, weights in zip(density.nodes, density.weights, strict=True)
    ]
    mean, half = float(np.mean(counts)), _half_width(counts)
    return Share(mean, max(0.0, mean - half), mean + half)


def distance(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """Wasserstein-1 distance to the exact spectrum, relative to its range."""
    nodes, weights = np.concatenate(density.nodes), np.concatenate(density.weights)
    extent: float = float(eigenvalues[-1] - eigenvalues[0]) or abs(float(eigenvalues[0])) or 1.0
    return float(scipy.stats.wasserstein_distance(nodes, eigenvalues, weights)) / extent


def _half_width(samples: list[float]) -> float:
    """Of the 95 % interval of a mean."""
    count = len(samples)
    if count < 2:
        return float("inf")
    stderr = float(np.std(samples, ddof=1)) / math.sqrt(count)
    return student_quantile(0.95, count - 1) * stderr
