"""Why a run stopped."""

from __future__ import annotations

from enum import StrEnum
from typing import final


@final
class StoppingReason(StrEnum):
    """The ``reason`` of a result. Every member is also its own description, a string.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree.results import StoppingReason
    >>> estimate = mf.trace(np.eye(50), num_probes=4, seed=0)
    >>> estimate.reason is StoppingReason.ALL_PROBES, str(estimate.reason)
    (True, 'all probes were used')
    """

    RUNNING = "still running"
    ALL_PROBES = "all probes were used"
    TOLERANCE = "the tolerance was met"
    EXACT = "the budget allowed the exact answer from all unit vectors"
    BUDGET = "the budget of matvecs ended first"
    STEPS = "the steps ended first"
    RESIDUALS = "every residual is within rtol"
    VERIFIED = "every residual is within rtol, and the verification search found nothing better"
    UNVERIFIED = "every residual is within rtol; the verification search did not finish"
    ROUNDING = "rounding hides what is smaller"
    LEAST_SQUARES = "every column is a solution or a least-squares solution within rtol"
    INCOMPATIBLE = "a right-hand side is not in the range of the operator"
    INCONSISTENT = "the true residuals are larger than those of the recurrence"
    INDEFINITE = "the operator is not positive definite"
    CALLBACK = "stopped by the callback"
    INTERRUPTED = "interrupted"
