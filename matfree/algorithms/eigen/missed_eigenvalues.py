r"""Stopping test of the verification search: can a missed eigenvalue be ruled out?

The search starts from a random block in the orthogonal complement of the pairs found so far.
Let lambda be an eigenvalue of the complement that is at least as good as the worst of the wanted
values, and [a, b] the interval spanned by the Ritz values. Relative to the other components of
the start, m block steps can amplify the component along the eigenvector of lambda by the
Chebyshev polynomial

.. math::

    T_{m-1}(1 + 2 \gamma) \ge \tfrac12 e^{(m-1)\,\mathrm{arcosh}(1 + 2 \gamma)},
    \qquad \gamma = \frac{\lambda - b}{b - a}.

The squared overlap of a random unit vector with an eigenvector is of the order of 1 / n. Once
the squared amplification exceeds n by a wide margin, the largest Ritz value would have reached
lambda. If it has not, no such eigenvalue exists.

References
----------
The overlap of a random start vector with an eigenvector, and its growth: J. Kuczynski, H.
Wozniakowski (1992), Estimating the largest eigenvalue by the power and Lanczos algorithms with
a random start, doi:10.1137/0613066.
"""

from __future__ import annotations

import math

import numpy as np

from matfree.algorithms.krylov.thick_restart import KrylovDecomposition
from matfree.arguments import Which
from matfree.protocol import HostArray

_MIN_AMPLIFICATION = 1e4
"""The squared amplification, in units of n, from which a missed eigenvalue is ruled out. The
factor 1e4 covers random starts whose squared overlap is 1e4 times smaller than 1 / n."""


def gain_over_worst(values: HostArray, worst: float, end: Which) -> HostArray:
    """By how much values are better than the worst wanted value, in the order of ``end``.

    Parameters
    ----------
    values : (j,) float64
    worst : float
    end : {"LM", "LA", "SA"}

    Returns
    -------
    (j,) float64, positive for values that are better.
    """
    if end == "LM":
        return np.abs(values) - abs(worst)
    return values - worst if end == "LA" else worst - values


def can_rule_out_missed(
    krylov: KrylovDecomposition, values: HostArray, worst: float, end: Which
) -> bool:
    """Whether no eigenvalue in the complement is at least as good as the worst wanted one.

    Parameters
    ----------
    krylov : KrylovDecomposition
        The search in the complement.
    values : (j,) float64, ascending
        Its Ritz values, none of which is better than ``worst``.
    worst : float
        The worst of the wanted values found so far.
    end : {"LM", "LA", "SA"}
        The end of the spectrum that is searched.
    """
    low, high = float(values[0]), float(values[-1])
    if end == "LM":
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        target = abs(worst)
    elif end == "SA":
        low, high, target = -high, -low, -worst
    else:
        target = worst
    if high <= low:  # a single Ritz value spans no interval
        return krylov.num_steps > 2
    gap = max(0.0, (target - high) / (high - low))
    # Logarithms, because the polynomial overflows.
    growth = (krylov.num_steps - 1) * math.acosh(1 + 2 * gap) - math.log(2)
    return 2 * growth > math.log(_MIN_AMPLIFICATION * krylov.space.size)
