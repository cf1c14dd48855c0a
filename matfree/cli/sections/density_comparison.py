"""A spectral density compared with the exact eigenvalues."""

from __future__ import annotations

import numpy as np
import scipy.stats

from matfree.protocol import HostArray
from matfree.results import Estimate, SpectralDensity


def exact_negative_share(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """The fraction of the exact eigenvalues that are negative by more than the noise floor."""
    return float(np.mean(eigenvalues < -density.noise_floor))


def interval_contains(share: Estimate, exact: float, density: SpectralDensity) -> bool:
    """Whether the 95 % interval contains a value, up to rounding errors of the weights."""
    (low, high), rounding = share.interval(), density.num_steps * density.epsilon
    return bool(low - rounding <= exact <= high + rounding)


def wasserstein_distance(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """The Wasserstein-1 distance to the exact spectrum, relative to its range."""
    nodes, weights = np.concatenate(density.nodes), np.concatenate(density.weights)
    # A spectrum of one eigenvalue has the range 0; its magnitude is the only scale then.
    extent: float = float(eigenvalues[-1] - eigenvalues[0]) or abs(float(eigenvalues[0])) or 1.0
    return float(scipy.stats.wasserstein_distance(nodes, eigenvalues, weights)) / extent
