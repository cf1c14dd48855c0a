"""A spectral density compared with the exact eigenvalues."""

from __future__ import annotations

import numpy as np
import scipy.stats

from matfree.cli.study import ExactAnswers
from matfree.protocol import HostArray
from matfree.results import Estimate, SpectralDensity


def exact_negative_share(density: SpectralDensity, exact: ExactAnswers) -> float:
    """The fraction of the exact eigenvalues that are negative beyond the noise and rounding."""
    return _shares(density, exact)[0]


def interval_contains(share: Estimate, density: SpectralDensity, exact: ExactAnswers) -> bool:
    """Whether the 95 % interval contains the exact fraction, up to rounding.

    Eigenvalues within the rounding errors of the dense solver may be on either side.
    """
    (low, high), rounding = share.interval(), density.num_steps * density.epsilon
    least, most = _shares(density, exact)
    return bool(low - rounding <= most and least <= high + rounding)


def _shares(density: SpectralDensity, exact: ExactAnswers) -> tuple[float, float]:
    """The smallest and the largest fraction that rounding of the exact eigenvalues permits."""
    assert exact.eigenvalues is not None
    moved = (exact.eigenvalues + exact.own_rounding, exact.eigenvalues - exact.own_rounding)
    least, most = (float(np.mean(values < -density.noise_floor)) for values in moved)
    return least, most


def wasserstein_distance(density: SpectralDensity, eigenvalues: HostArray) -> float:
    """The Wasserstein-1 distance to the exact spectrum, relative to its range."""
    nodes, weights = np.concatenate(density.nodes), np.concatenate(density.weights)
    # A spectrum of one eigenvalue has the range 0; its magnitude is the only scale then.
    extent: float = float(eigenvalues[-1] - eigenvalues[0]) or abs(float(eigenvalues[0])) or 1.0
    return float(scipy.stats.wasserstein_distance(nodes, eigenvalues, weights)) / extent
