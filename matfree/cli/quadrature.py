"""A spectral density beside the exact eigenvalues."""

from __future__ import annotations

import numpy as np
import scipy.stats

from matfree.protocol import HostArray
from matfree.results import Estimate, SpectralDensity


def exact_negative_share(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """The fraction of the exact eigenvalues below the noise floor, where signs begin."""
    return float(np.mean(eigenvalues < -density.noise_floor))


def holds(share: Estimate, exact: float, density: SpectralDensity) -> bool:
    """Whether the 95 % interval holds a value, give or take what rounding does to weights."""
    (low, high), rounding = share.interval(), density.num_steps * density.epsilon
    return bool(low - rounding <= exact <= high + rounding)


def distance(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """Wasserstein-1 distance to the exact spectrum, relative to its range."""
    nodes, weights = np.concatenate(density.nodes), np.concatenate(density.weights)
    extent: float = float(eigenvalues[-1] - eigenvalues[0]) or abs(float(eigenvalues[0])) or 1.0
    return float(scipy.stats.wasserstein_distance(nodes, eigenvalues, weights)) / extent
