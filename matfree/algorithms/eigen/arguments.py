"""Checks of arguments, the state for callbacks, and the warning that eigensolvers share."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arguments import require_whole
from matfree.arrays import epsilon
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import HostArray
from matfree.results import EigenResult, SingularResult, StoppingReason

_ACCEPTED_FRACTION = 0.9
"""The fraction of the tolerance at which a search accepts an eigenpair."""


class EigenStep(NamedTuple):
    """What a callback is given after each block of matvecs."""

    num_matvecs: int
    """The number of matvecs so far."""
    values: HostArray
    """(j,) float64: the wanted Ritz values so far, j <= k, the best first."""
    residuals: HostArray
    """(j,) float64: their residuals relative to ||A||."""

    def times(self, factor: float) -> EigenStep:
        """The same for the operator multiplied by a factor."""
        return self._replace(values=self.values * factor)


class Tolerance(NamedTuple):
    """The tolerance on residuals relative to ||A||, and what rounding makes of it."""

    rtol: float
    eps: float
    """The machine precision of the vectors."""

    @classmethod
    def of(cls, A: CountedOperator, rtol: float | None) -> Tolerance:
        """The tolerance ``rtol``, or max(1e-6, 100 eps) if it is None.

        Raises
        ------
        ValueError
            rtol is not a positive finite number.
        """
        eps = epsilon(A.space.xp, A.space.dtype)
        if rtol is None:
            rtol = max(1e-6, 100 * eps)
        if not isinstance(rtol, int | float | np.number) or not 0 < rtol < math.inf:
            raise ValueError(
                f"rtol must be positive and finite: got {rtol!r}; it bounds the residuals relative "
                "to ||A||, so pass a small number such as 1e-6."
            )
        return cls(rtol, eps)

    @property
    def accepted(self) -> float:
        """The predicted residual at which a search accepts an eigenpair.

        The final Rayleigh-Ritz rotation may increase it slightly. Predicted residuals below eps
        say nothing about the vectors, which have rounding errors.
        """
        return max(_ACCEPTED_FRACTION * self.rtol, self.eps)

    @property
    def least_gain(self) -> float:
        """The difference, relative to ||A||, below which two eigenvalues count as equal."""
        return max(self.rtol, 8 * self.eps)

    def reason(self, reason: str, residuals: HostArray) -> str:
        """ROUNDING in place of a reason that the final residuals contradict.

        They exceed rtol although the search accepted the vectors, or they are of the order of
        eps, so that no budget reduces them further.

        Parameters
        ----------
        reason : why the search stopped
        residuals : (k,) float64, relative to ||A||
        """
        above = residuals[residuals > self.rtol]
        if not above.size or reason in (StoppingReason.CALLBACK, StoppingReason.INTERRUPTED):
            return reason
        if reason in (StoppingReason.BUDGET, StoppingReason.STEPS) and above.max() > 32 * self.eps:
            return reason
        return StoppingReason.ROUNDING


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


def krylov_matvecs(k: int, width: int, size: int) -> int:
    """The matvecs after which a Krylov space contains k vectors, for blocks of this width."""
    return min(size, width * math.ceil(k / width))


def rounding_advice(worst: float, dtype: str) -> str:
    """What to do if the residuals are rounding errors, of which ``worst`` is the largest."""
    return (
        f"rounding in {dtype} limits the residuals, and more matvecs do not help; pass "
        f"rtol={1.5 * worst:.0e} or more, or an operator of higher precision"
    )


def warn_unconverged(
    result: EigenResult | SingularResult, noun: str, requested: int, rtol: float, dtype: str
) -> None:
    """Issue a ConvergenceWarning if fewer pairs converged than were requested.

    Parameters
    ----------
    result : EigenResult or SingularResult
    noun : str
        The plural of what was requested: "eigenpairs" or "singular triplets".
    requested : int
    rtol : float
    dtype : str
        The data type of the vectors, whose rounding may be the reason.
    """
    missing = int((~result.converged).sum()) + requested - len(result.values)
    if not missing:
        return
    worst = float(result.residuals.max())
    if result.reason == StoppingReason.ROUNDING:
        advice = rounding_advice(worst, dtype)
    elif result.reason == StoppingReason.CALLBACK:
        advice = "pass this result as start to continue"
    else:
        advice = "raise max_matvecs or num_vectors, loosen rtol, or pass this result as start"
    warn(
        f"{missing} of {requested} {noun} did not reach rtol={rtol:.1e} within "
        f"{result.num_matvecs} matvecs (largest residual {worst:.1e} of ||A||; "
        f"{result.reason}): {advice}.",
        ConvergenceWarning,
    )
