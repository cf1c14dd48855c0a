"""When a search that found nothing may say that there is nothing to find.

References
----------
How large a random start's part in an eigenvector is, and how it grows: J. Kuczynski, H.
Wozniakowski (1992), doi:10.1137/0613066.
"""

from __future__ import annotations

import math

import numpy as np

from matfree.algorithms.krylov.thick_restart import KrylovDecomposition
from matfree.arguments import Which
from matfree.protocol import HostArray

_MIN_AMPLIFICATION = 1e4
"""How much larger than the rest a missed eigenvalue's part in a random start vector must
have grown before its absence is believed: 1e4 n / overlap in squared length."""


def gain_over_worst(values: HostArray, worst: float, end: Which) -> HostArray:
    """By how much values beat the worst of the wanted."""
    if end == "LM":
        return np.abs(values) - abs(worst)
    return values - worst if end == "LA" else worst - values


def can_rule_out_missed(
    krylov: KrylovDecomposition, values: HostArray, worst: float, end: Which
) -> bool:
    """Whether an eigenvalue at least as good as the worst wanted would have shown by now.

    Of such an eigenvalue, m block steps amplify the part in the random start by the
    Chebyshev polynomial of the interval that the Ritz values span. Once that outgrows the
    smallness of a random overlap, 1 / n, by a wide margin, the Rayleigh quotient would be
    at the eigenvalue; it is not, so the eigenvalue is not there.
    """
    low, high = float(values[0]), float(values[-1])
    if end == "LM":
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        target = abs(worst)
    elif end == "SA":
        low, high, target = -high, -low, -worst
    else:
        target = worst
    if high <= low:
        return krylov.num_steps > 2
    gap = max(0.0, (target - high) / (high - low))
    growth = (krylov.num_steps - 1) * math.acosh(1 + 2 * gap) - math.log(2)
    return 2 * growth > math.log(_MIN_AMPLIFICATION * krylov.space.size)
