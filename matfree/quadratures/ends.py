r"""Bounds of the spectrum that random probes imply.

Let v be a unit eigenvector with eigenvalue x below all nodes. The spectral measure of a probe w
has at least the mass |w^H v|^2 at x. After m steps, the mass at x is at most

.. math:: c(x) = \frac{\|w\|^2}{\sum_{j \le m} p_j(x)^2},

which decreases exponentially with the distance from the nodes. An eigenvalue below x would
therefore have to have an eigenvector with |w^H v|^2 <= c(x) for all of N probes. For Gaussian
probes, the probability of that is

.. math:: P(\chi^2_1 \le \max_p c_p(x))^N.

The bound is the largest x at which it is at most DELTA. It needs no assumption on the spectrum.
An eigenvector that is orthogonal to all probes is not seen: then its contribution is missing from
the samples, which is a sampling error, and not from their quadratures.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special

from matfree.protocol import HostArray
from matfree.quadratures.jacobi import NODE_ROUNDING, JacobiMatrices

DELTA = 1e-3
"""The probability that an eigenvalue is beyond a bound."""

# A vector of signs sees a coordinate vector with |w^H v|^2 = 1, however many probes there are.
_LARGEST_MASS = 0.5
_SWEEPS, _SWEEP_POINTS = 4, 24  # each sweep reduces the interval of log(theta_1 - x) by 23
_FARTHEST = 3.0  # exp(3) ranges of the nodes


def lower_end(T: JacobiMatrices, least: float, largest: float) -> float:
    """A number below which there is no eigenvalue, but for the probability ``DELTA``.

    Parameters
    ----------
    T : JacobiMatrices
    least, largest : float
        The extreme nodes of all probes.

    Returns
    -------
    float
        -inf if the probes do not exclude any eigenvalue.
    """
    count = len(T.alphas)
    # The quantile of the chi-squared distribution with one degree of freedom.
    mass = min(_LARGEST_MASS, 2 * float(scipy.special.gammaincinv(0.5, DELTA ** (1 / count))))
    span = max(largest - least, float(T.betas.max()))
    size = max(abs(least), abs(largest))
    low, high = math.log(np.finfo(np.float64).eps), _FARTHEST
    for _ in range(_SWEEPS):
        distances = np.linspace(low, high, _SWEEP_POINTS)
        too_much = ~(largest_mass(T, least - np.exp(distances) * span) <= mass)
        if not too_much.any():
            high = low
            break
        last = int(np.flatnonzero(too_much)[-1])
        if last == _SWEEP_POINTS - 1:
            return -math.inf
        low, high = float(distances[last]), float(distances[last + 1])
    return least - math.exp(high) * span - NODE_ROUNDING * T.eps * size


def largest_mass(T: JacobiMatrices, points: HostArray) -> HostArray:
    """The largest mass that the measure of any of the probes may have at points outside, (K,)."""
    masses = np.log(T.squares)[:, None] - T.log_sums(points, degree=T.num_steps)
    return np.asarray(np.exp(masses).max(axis=0))
