"""The contract of every sampling estimator: what is computed from each block of probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.protocol import Array, HostArray
from matfree.results.intervals import student_quantile

FIRST_CHECK = 12
"""Probes before the first convergence check: a standard error from fewer is too uncertain, and
random signs may agree by chance."""

CHECK_GROWTH = 1.25
"""The ratio of the numbers of probes at successive convergence checks.

Each check is another chance to stop on an underestimated standard error, so that checks after
every block would lower the coverage of the intervals.
"""


class Summary(NamedTuple):
    """The estimate of an estimator at a convergence check, with its errors."""

    value: Any
    """A number, or an array (rows,)."""
    stderr: Any
    """The standard error of ``value``: a number, or an array (rows,)."""
    norm: float
    """|value|, or the 2-norm of an array over all rows."""
    stderr_norm: float
    """The standard error, or the 2-norm of an array of standard errors."""
    degrees_of_freedom: float
    samples: HostArray | None = None
    """The samples of the probes, (num_probes,), of estimators whose value is their mean."""
    bias: float = 0.0
    """A bound on the error that is not due to sampling. It is added to the half-width."""
    deviations: HostArray | None = None
    """Numbers whose mean square is the variance of a sample; see ``results.intervals``."""
    widening: float = 1.0
    """The factor of the sampling error in the half-width."""

    @property
    def level(self) -> float:
        """The value shown in histories: the real part of a number, or the norm of an array."""
        return self.norm if hasattr(self.value, "shape") else float(self.value.real)

    @property
    def half_width(self) -> float:
        """The half-width of the 95 % interval, or the 2-norm of those of all entries."""
        quantile = student_quantile(0.95, self.degrees_of_freedom)
        return self.widening * quantile * self.stderr_norm + self.bias


class Estimator(ABC):
    """An estimator that averages over random probes.

    Parameters
    ----------
    A : CountedOperator
    plan : Plan
        Seed and distribution of the probes, block size and budget.
    """

    method: str
    cost = 1
    """Matvecs per probe."""
    mergeable = True
    """Whether estimates over different probes can be averaged."""
    bias_advice = "raise num_steps"
    """Advice on how to reduce a bias, for warnings."""
    first_check = FIRST_CHECK
    check_growth = CHECK_GROWTH
    memory: dict[str, Any] = {}  # noqa: RUF012  # replaced as a whole, never written into
    """The storage of vectors that was chosen for a memory budget, if there is one."""
    checkpoint: Checkpoint
    """The checkpoint of the run, set by the sampling loop."""
    saved: tuple[str, ...] = ()
    """The attributes that change from block to block, which a checkpoint stores."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        self.A, self.space, self.plan = A, A.space, plan

    @property
    def least_matvecs(self) -> int:
        """The smallest number of matvecs that gives an estimate."""
        return self.cost

    @property
    def unit(self) -> str:
        """What ``least_matvecs`` are spent on, for error messages."""
        return f"a probe of {self.method}"

    def block_done(self) -> None:
        """Save the state of the run. To be called after every block outside ``advance``."""
        self.checkpoint.save()

    def identity(self, budget: int) -> dict[str, Any]:
        """Options, in addition to those of the plan, that determine what a saved state means."""
        return {}

    def prepare(self, budget: int) -> int:
        """Do the work before the first probe, and return how many probes may follow."""
        return budget // self.cost if self.plan.num_probes is None else self.plan.num_probes

    def reserve(self, num_probes: int) -> None:  # noqa: B027  # most estimators store nothing
        """Allocate memory for what ``num_probes`` probes in total will store."""

    @abstractmethod
    def advance(self, start: int, count: int) -> None:
        """Apply the operator to the ``count`` probes from number ``start`` of the run on."""

    @abstractmethod
    def summary(self) -> Summary:
        """The estimate from the probes so far."""

    @abstractmethod
    def exact(self) -> Summary:
        """The exact value, from all n unit vectors."""

    def probes(self, start: int, count: int) -> Array:
        """The probes with numbers ``start`` to ``start + count - 1`` of the run, (rows, count)."""
        first = self.plan.first_probe + start
        return self.space.probes(count, seed=self.plan.seed, start=first, kind=self.plan.kind)

    def check_points(self, limit: int) -> Iterator[int]:
        """The numbers of probes at which convergence is checked, ending with ``limit``."""
        check_point = float(self.first_check)
        # Independent of the block size and of interruptions, so that these change no result.
        while self.plan.adaptive and check_point < limit:
            yield int(check_point)
            check_point *= self.check_growth
        if limit:
            yield limit
