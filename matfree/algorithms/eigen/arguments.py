"""Checks of arguments, and the warning, that ``eigsh`` and ``svds`` have in common."""

from __future__ import annotations

import math

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arguments import require_whole
from matfree.arrays import epsilon
from matfree.errors import ConvergenceWarning, warn
from matfree.results import EigenResult, SingularResult


def residual_tolerance(A: CountedOperator, rtol: float | None) -> float:
    """The bound on residuals relative to ||A||: 1e-6, or 100 eps if that is more."""
    if rtol is None:
        return max(1e-6, 100 * epsilon(A.space.xp, A.space.dtype))
    if not 0 < rtol < math.inf:
        raise ValueError(f"rtol must be positive: got {rtol}; it is relative to ||A||.")
    return rtol


def require_counts(
    A: CountedOperator,
    k: int,
    *,
    block_size: int,
    num_vectors: int | None,
    max_matvecs: int | None,
) -> None:
    """Refuse numbers of pairs, vectors and matvecs that the operator does not allow."""
    for name, count in (
        ("block_size", block_size),
        ("num_vectors", num_vectors),
        ("max_matvecs", max_matvecs),
    ):
        require_whole(name, count)
    m, n = A.operator.shape
    if not hasattr(k, "__index__") or not 1 <= k <= min(m, n):
        within, size = ("n", f"size {n}") if m == n else ("min(m, n)", f"shape {m, n}")
        raise ValueError(f"k must be in [1, {within}]: got {k} for an operator of {size}.")
    if num_vectors is not None and num_vectors < min(k + 2, m, n):
        raise ValueError(f"num_vectors must be at least k + 2: got {num_vectors} for k = {k}.")


def warn_unconverged(
    result: EigenResult | SingularResult, noun: str, asked: int, rtol: float
) -> None:
    """Warn if some of the pairs or triplets that were asked for did not converge."""
    missing = int((~result.converged).sum()) + asked - len(result.values)
    if missing:
        warn(
            f"{missing} of {asked} {noun} did not reach rtol={rtol:.1e} within "
            f"{result.num_matvecs} matvecs (worst residual {result.residuals.max():.1e} of ||A||; "
            f"{result.reason}): raise max_matvecs or num_vectors, loosen rtol, or pass this "
            "result as start.",
            ConvergenceWarning,
        )
