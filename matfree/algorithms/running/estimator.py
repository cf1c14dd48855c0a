"""What becomes of the products of probes: the contract of every sampling estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.protocol import Array, HostArray
from matfree.results.intervals import student_quantile

FIRST_CHECK = 20
"""Probes before the first look: an error bar from fewer is itself too uncertain."""

CHECK_GROWTH = 1.25
"""The factor from one look to the next: many looks would inflate the error."""


class Summary(NamedTuple):
    """What an estimator has to say at a look."""

    value: Any
    stderr: Any
    size: float
    """|value|, or the 2-norm of an array."""
    bar: float
    """The standard error's size, likewise."""
    degrees_of_freedom: float
    samples: HostArray | None = None
    bias: float = 0.0
    """What is no sampling error and is added to the half-width."""

    @property
    def level(self) -> float:
        """The number that a history shows: the value's real part, or an array's size."""
        return self.size if hasattr(self.value, "shape") else float(self.value.real)

    @property
    def half_width(self) -> float:
        """The half-width of the 95 % interval, or the 2-norm of all entries' ones."""
        return student_quantile(0.95, self.degrees_of_freedom) * self.bar + self.bias


class Estimator(ABC):
    """What becomes of the products of probes.

    Parameters
    ----------
    product : the operator, counted
    plan : seed, kind of probes, block size and budget
    """

    method: str
    cost = 1
    """Products a probe."""
    mergeable = True
    """Whether the probes enter independently of each other."""
    first_check = FIRST_CHECK
    check_growth = CHECK_GROWTH
    memory: dict[str, Any] = {}  # noqa: RUF012  # replaced as a whole, never written into
    """How vectors are kept within a budget of memory, where there is one."""
    checkpoint: Checkpoint
    """The checkpoint of the run, set by the sampling loop."""
    saved: tuple[str, ...] = ()
    """Attributes that change from block to block, for a checkpoint."""

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        self.A, self.space, self.plan = A, A.space, plan

    def block_done(self) -> None:
        """Save the state of the run; to be called after every block outside of ``advance``."""
        self.checkpoint.save()

    def identity(self, budget: int) -> dict[str, Any]:
        """Options, beside the plan's, without which a saved state means something else."""
        return {}

    def prepare(self, budget: int) -> int:
        """Work before the first probe; how many probes the rest of the budget pays for."""
        return budget // self.cost if self.plan.num_probes is None else self.plan.num_probes

    def reserve(self, num_probes: int) -> None:  # noqa: B027  # most keep nothing
        """Make room for what so many probes in all will leave behind."""

    @abstractmethod
    def advance(self, start: int, count: int) -> None:
        """Send ``count`` probes, the ``start``-th of the run first."""

    @abstractmethod
    def summary(self) -> Summary:
        """The estimate from the probes sent so far."""

    @abstractmethod
    def exact(self) -> Summary:
        """The answer from all n unit vectors."""

    def probes(self, start: int, count: int) -> Array:
        """Probes of the run, (rows, count)."""
        first = self.plan.first_probe + start
        return self.space.probes(count, seed=self.plan.seed, start=first, kind=self.plan.kind)

    def check_points(self, limit: int) -> Iterator[int]:
        """Numbers of probes after which the tolerance is looked at, ending with the limit."""
        check_point = float(self.first_check)
        while self.plan.adaptive and check_point < limit:
            yield int(check_point)
            check_point *= self.check_growth
        if limit:
            yield limit
