r"""Levels and quantiles of confidence intervals, and the variance of a mean of quadratic forms.

For a Hermitian B, the variance of a sample x = w^H B w is the mean of a number that one matvec
yields,

.. math:: \operatorname{Var} x = E[\delta^2], \qquad
    \delta^2 = c \, \|B w\|^2 \ \text{(Gaussian)}, \quad
    c \, \|B w - (x / n) w\|^2 \ \text{(sphere)}, \quad
    2 \, \|d - \operatorname{diag} B\|^2, \ d = \operatorname{Re} \bar w * (B w) \
    \text{(signs and fourth roots of unity)},

with c = 2 for real probes and c = 1 for complex ones. The scatter of :math:`\delta^2` is much
smaller than that of (x - E x)^2: its relative variance is 2 if one eigenvector carries the trace,
where that of the latter is 14. The interval is Student's t interval with the mean of
:math:`\delta^2` as variance and q / h degrees of freedom, where q is the number of deviations
:math:`\delta`, and h is half of the relative variance of their squares, at most 1. The estimate of
h is drawn to 1 with the weight of four samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.special

from matfree.protocol import HostArray

_DISCRETE = ("rademacher", "z4")  # kinds of probes

_NEGLIGIBLE_BIAS = 1e-8  # per eigenvalue: the bias of a trace 0 may be a rounding error

_PRIOR_SAMPLES = 4  # the weight of the largest possible h

_LEAST_DISCRETE = 6  # fewer samples of signs always look as if they took two values only

_CLUMPED = 0.01  # of the squares: what the distances within two clumps of samples may contribute

_LEAST_SHARE = 25.0  # a variance above this multiple of that of the samples is not believed

_ENOUGH_SAMPLES = 8  # samples that agree by chance with a probability of 2^-7 at most


class MeanError(NamedTuple):
    """The error of the mean of independent samples."""

    stderr: float
    degrees_of_freedom: float


def is_informative(norm: float, half_width: float, bias: float, *, size: int) -> bool:
    """Whether there is an interval, and no bias larger than the value and the sampling error.

    Parameters
    ----------
    norm : float
        The absolute value, or the 2-norm, of the estimate.
    half_width : float
        Of the interval, the bias included.
    bias : float
    size : int
        n, the size of the operator.
    """
    if not math.isfinite(half_width):
        return False
    return bias <= max(_NEGLIGIBLE_BIAS * size, norm + half_width - bias)


def require_level(level: float) -> None:
    """Raise ValueError unless ``level`` is in (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1): got {level}; pass 0.95 for 95 %.")


def student_quantile(level: float, degrees_of_freedom: float) -> float:
    """The half-width of the two-sided interval in standard errors; inf for a single sample."""
    if degrees_of_freedom < 1:
        return float("inf")
    return float(scipy.special.stdtrit(degrees_of_freedom, 0.5 + level / 2))


def mean_error(
    samples: HostArray, deviations: HostArray | None = None, *, kind: str = "", size: int = 0
) -> MeanError:
    """The error of the mean of samples, from their deviations if there are any.

    Parameters
    ----------
    samples : (k,) real or complex
    deviations : (q,), optional
        Numbers whose mean square is the variance of a sample. Of probes of signs there is one
        fewer per run, because their deviations are those from the mean diagonal of earlier
        probes. If there are k, they are deviations from multiples of the identity, and their
        mean square only bounds the variance. Those of complex samples are complex: the real part
        belongs to the real part of the samples, and the imaginary part to the imaginary one.
    kind : str
        The distribution of the probes.
    size : int
        n, the size of the operator.
    """
    k = samples.size
    distances = np.abs(samples - samples.mean())
    discrete = kind in _DISCRETE
    if deviations is None or not deviations.size or (discrete and k < 2):
        return _of_scatter(distances)
    sizes = np.abs(deviations)
    scale = max(float(distances.max()), float(sizes.max()))
    if scale == 0:
        return MeanError(0.0, float(max(k - 1, 1)))
    squares, scatter = (sizes / scale) ** 2, 0.0
    if k > 1:
        scatter = float(np.sum((distances / scale) ** 2)) / (k - 1)
    q, limit = float(sizes.size), math.inf
    if discrete and sizes.size == k:
        q = k - 1.0
        squares = squares + 2 * (distances / scale) ** 2 * k / (q * size)
        # Samples that agree show a nearly diagonal operator, which these deviations do not.
        limit = _LEAST_SHARE * scatter if k >= _ENOUGH_SAMPLES else math.inf
    variance = min(float(squares.mean()), limit)
    h = _relative_variance(squares)
    correction = 0.0
    if discrete and k >= _LEAST_DISCRETE and _look_discrete(samples, scatter, variance):
        h, correction = 1.0, math.sqrt(max(variance, scatter)) / k
    stderr = math.sqrt(variance / k) + correction / student_quantile(0.95, q / h)
    return MeanError(scale * stderr, q / h)


def norm_error(samples: HostArray, pairs: HostArray, *, kind: str) -> MeanError:
    r"""The error of the mean of samples ||A w_i||^2, of which no deviations are known.

    For Gaussian probes, their variance is c E |(A w_i)^H A w_j|^2, i != j, with c = 2 for real
    ones, which ``pairs`` estimates next to the scatter of the samples; the larger one is used. The
    interval of the logarithm of the mean has more nearly the same coverage on both sides. Its upper
    half is the wider one, and is taken for both.

    Parameters
    ----------
    samples : (k,) float64
    pairs : (p,) float64
        sqrt(c) |(A w_i)^H A w_j| for disjoint pairs of probes.
    kind : str
        The distribution of the probes.
    """
    k, mean = samples.size, float(samples.mean())
    found = _of_scatter(np.abs(samples - mean))
    if k < 2 or found.stderr == 0 or mean == 0:
        return found
    scatter = found.stderr * math.sqrt(k)
    deviation = max(scatter, mean * float(np.linalg.norm(pairs / mean)) / math.sqrt(pairs.size))
    if kind in _DISCRETE:  # the diagonal of A^H A is part of the pairs, but not of the variance
        deviation = min(deviation, 2 * scatter)
    t = student_quantile(0.95, found.degrees_of_freedom)
    half = t * deviation / math.sqrt(k)
    if kind in _DISCRETE and k >= _LEAST_DISCRETE and _look_discrete(samples / mean, 1.0, 0.0):
        half += deviation / k
    return MeanError(mean * math.expm1(half / mean) / t, found.degrees_of_freedom)


def _of_scatter(distances: HostArray) -> MeanError:
    """The error by Student's t distribution; for complex samples, of both parts together."""
    k, scale = distances.size, float(distances.max())
    if k < 2:
        return MeanError(math.inf, 0.0)
    if scale == 0:
        return MeanError(0.0, k - 1)
    scaled = distances / scale  # the squares of the distances may overflow or underflow
    return MeanError(scale * math.sqrt(float(scaled @ scaled) / (k * (k - 1))), k - 1)


def _relative_variance(squares: HostArray) -> float:
    """Half of the relative variance of the squares, drawn to 1."""
    mean, more = float(squares.mean()), squares.size - 1
    if more < 1 or mean == 0:
        return 1.0
    found = float(squares.var(ddof=1)) / (2 * mean**2)
    return min((_PRIOR_SAMPLES + more * found) / (_PRIOR_SAMPLES + more), 1.0)


def _look_discrete(samples: HostArray, scatter: float, variance: float) -> bool:
    """Whether samples lie in two clumps, or agree although they have a variance.

    Few coordinates then determine the samples, and their mean takes few values: a correction for
    continuity is due.
    """
    if scatter < _CLUMPED * variance:
        return True
    ordered = np.sort(samples.real)
    ordered = ordered - ordered.mean()
    ordered = ordered / (np.abs(ordered).max() or 1.0)
    first = int(np.argmax(np.diff(ordered))) + 1
    clumps = ordered[:first], ordered[first:]
    within = sum(float(np.sum((clump - clump.mean()) ** 2)) for clump in clumps)
    return within <= _CLUMPED * float(np.sum(ordered**2))
