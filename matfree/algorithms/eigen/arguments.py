"""Checks of arguments, the state for callbacks, and the warning that eigensolvers share."""

from __future__ import annotations

import math
from typing import NamedTuple

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arguments import require_whole
from matfree.arrays import epsilon
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import HostArray
from matfree.results import EigenResult, SingularResult


class EigenStep(NamedTuple):
    """What a callback is given after each block of matvecs."""

    num_matvecs: int
    """The number of matvecs so far."""
    values: HostArray
    """(j,) float64: the wanted Ritz values so far, j <= k, the best first."""
    residuals: HostArray
    """(j,) float64: their residuals relative to ||A||."""


def residual_tolerance(A: CountedOperator, rtol: float | None) -> float:
    """The tolerance on residuals relative to ||A||: max(1e-6, 100 eps) if ``rtol`` is None.

    Raises
    ------
    ValueError
        rtol is not a positive finite number.
    """
    if rtol is None:
        return max(1e-6, 100 * epsilon(A.space.xp, A.space.dtype))
    if not 0 < rtol < math.inf:
        raise ValueError(
            f"rtol must be positive and finite: got {rtol}; it bounds the residuals relative to "
            "||A||, so pass a small number such as 1e-6."
        )
    return rtol


def require_num_pairs(A: CountedOperator, k: int) -> None:
    """Raise ValueError unless k is a whole number in [1, min(m, n)]."""
    m, n = A.operator.shape
    if not hasattr(k, "__index__") or not 1 <= k <= min(m, n):
        within, size = ("n", f"size {n}") if m == n else ("min(m, n)", f"shape {m, n}")
        raise ValueError(
            f"k must be in [1, {within}]: got {k} for an operator of {size}; pass a whole number "
            f"from 1 to {min(m, n)}."
        )


def require_counts(
    A: CountedOperator,
    k: int,
    *,
    block_size: int,
    num_vectors: int | None,
    max_matvecs: int | None,
) -> None:
    """Raise ValueError for a number of pairs, vectors or matvecs that is out of range."""
    for name, count in (
        ("block_size", block_size),
        ("num_vectors", num_vectors),
        ("max_matvecs", max_matvecs),
    ):
        require_whole(name, count)
    require_num_pairs(A, k)
    least = min(k + 2, *A.operator.shape)
    if num_vectors is not None and num_vectors < least:
        raise ValueError(
            f"num_vectors must be at least k + 2: got {num_vectors} for k = {k}; pass "
            f"num_vectors={least} or more."
        )


def warn_unconverged(
    result: EigenResult | SingularResult, noun: str, requested: int, rtol: float
) -> None:
    """Issue a ConvergenceWarning if fewer pairs converged than were requested.

    Parameters
    ----------
    result : EigenResult or SingularResult
    noun : str
        The plural of what was requested: "eigenpairs" or "singular triplets".
    requested : int
    rtol : float
    """
    missing = int((~result.converged).sum()) + requested - len(result.values)
    if missing:
        warn(
            f"{missing} of {requested} {noun} did not reach rtol={rtol:.1e} within "
            f"{result.num_matvecs} matvecs (largest residual {result.residuals.max():.1e} of "
            f"||A||; {result.reason}): raise max_matvecs or num_vectors, loosen rtol, or pass this "
            "result as start.",
            ConvergenceWarning,
        )
