"""Quantiles and levels of confidence intervals."""

from __future__ import annotations

import scipy.stats


def require_level(level: float) -> None:
    """Refuse what is no probability."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1): got {level}; pass 0.95 for 95 %.")


def student_quantile(level: float, degrees_of_freedom: float) -> float:
    """How many standard errors half of the two-sided interval spans; inf for one sample."""
    if degrees_of_freedom < 1:
        return float("inf")
    return float(scipy.stats.t.ppf(0.5 + level / 2, degrees_of_freedom))
