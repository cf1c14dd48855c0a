"""Levels and quantiles of confidence intervals."""

from __future__ import annotations

import scipy.stats


def require_level(level: float) -> None:
    """Raise ValueError unless ``level`` is in (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1): got {level}; pass 0.95 for 95 %.")


def student_quantile(level: float, degrees_of_freedom: float) -> float:
    """The half-width of the two-sided interval in standard errors; inf for a single sample."""
    if degrees_of_freedom < 1:
        return float("inf")
    return float(scipy.stats.t.ppf(0.5 + level / 2, degrees_of_freedom))
