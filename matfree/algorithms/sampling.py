"""The one loop of every sampling estimator: blocks of probes, looks, budgets, reports.

What is estimated is an :class:`Estimator`'s business; how many probes that takes is
decided here. Looks at the tolerance fall on fixed numbers of probes, so that neither the
block size nor a callback changes the answer.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, final

from matfree.algorithms.plan import Plan
from matfree.algorithms.products import HostArray, Products
from matfree.errors import ConvergenceWarning, Interrupted
from matfree.progress import Progress
from matfree.protocol import Array
from matfree.results import Estimate
from matfree.results.estimate import student_quantile

Callback = Callable[[Estimate], bool | None]


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
        if math.isinf(self.degrees_of_freedom):
            return self.bias
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
    first_look = 20
    """Probes before the first look: an error bar from fewer is itself too uncertain."""
    look_growth = 1.25
    """The factor from one look to the next: many looks would inflate the error."""

    def __init__(self, product: Products, plan: Plan) -> None:
        self.product, self.space, self.plan = product, product.space, plan

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

    def looks(self, limit: int) -> Iterator[int]:
        """Numbers of probes after which the tolerance is looked at, ending with the limit."""
        look = float(self.first_look)
        while self.plan.adaptive and look < limit:
            yield int(look)
            look *= self.look_growth
        if limit:
            yield limit


def estimate(
    product: Products, estimator: Estimator, *, progress: bool, callback: Callback | None
) -> Estimate:
    """Run an estimator over probes until its plan is fulfilled."""
    run = _Run(product, estimator, callback)
    with Progress(estimator.method, progress) as bar:
        try:
            return run.complete(bar)
        except KeyboardInterrupt as stop:
            if not run.done:
                raise
            raise Interrupted(run.result("interrupted", converged=False)) from stop


def asked_to_stop(callback: Callable[[Any], bool | None] | None, state: Any) -> bool:
    """Whether a callback asks to stop: by returning True or raising StopIteration."""
    if callback is None:
        return False
    try:
        return callback(state) is True
    except StopIteration:
        return True


@final
class _Run:
    """One estimation: how many probes are done, and what was seen at the looks."""

    def __init__(self, product: Products, estimator: Estimator, callback: Callback | None) -> None:
        self.product, self.estimator, self.plan = product, estimator, estimator.plan
        self.callback = callback
        self.done = 0
        self.latest: tuple[int, Summary] | None = None
        self.history: list[tuple[int, float, float]] = []

    def complete(self, bar: Progress) -> Estimate:
        sampling_budget, exact_affordable = self._split_budget()
        limit = self.estimator.prepare(sampling_budget) if sampling_budget else 0
        bar.start(limit or self.product.space.size)
        for look in self.estimator.looks(limit):
            self.estimator.reserve(look)
            while self.done < look:
                count = min(self.plan.block_size, look - self.done)
                self.estimator.advance(self.done, count)
                self.done += count
                bar.show(self.done, self._text)
                if self.callback is not None and asked_to_stop(
                    self.callback, self.result("under way", converged=False)
                ):
                    return self.result("stopped by the callback", converged=False)
            if self._met():
                return self.result(f"tolerance met after {self.done} probes", converged=True)
        if exact_affordable:
            return self._exact()
        if not self.plan.adaptive:
            return self.result(f"all {self.done} probes done", converged=True)
        self._warn()
        return self.result("the budget of products ended first", converged=False)

    def result(self, reason: str, *, converged: bool) -> Estimate:
        """The estimate as it stands."""
        summary = self._summary()
        return self._estimate(summary, reason, converged, self.estimator.method, self.done)

    def _summary(self) -> Summary:
        """The estimator's summary, made once for each number of probes: it may be dear."""
        if self.latest is None or self.latest[0] != self.done:
            self.latest = self.done, self.estimator.summary()
        return self.latest[1]

    def _split_budget(self) -> tuple[int, bool]:
        """Products for sampling, and whether n unit vectors may settle it afterwards.

        A budget of n pays for the exact answer. Sampling comes first where a tolerance may
        be met sooner, as long as it leaves enough, and no longer than the exact answer.
        """
        size, budget = self.product.space.size, self.plan.budget
        if self.plan.num_probes is not None or budget < size:
            return budget, False
        before = min(size, budget - size) if self.plan.adaptive else 0
        enough = before >= self.estimator.first_look * self.estimator.cost
        return (before if enough else 0), True

    def _met(self) -> bool:
        """Write the state into the history; whether it is within the tolerance."""
        summary = self._summary()
        self.history.append((self.product.num_matvecs, summary.level, summary.half_width))
        return self.plan.adaptive and summary.half_width <= self.plan.tolerance(summary.size)

    def _exact(self) -> Estimate:
        summary = self.estimator.exact()
        self.history.append((self.product.num_matvecs, summary.level, 0.0))
        n = self.product.space.size
        reason = f"the budget allowed the exact answer, from all {n} unit vectors"
        return self._estimate(summary, reason, True, "exact", 0)

    def _estimate(
        self, summary: Summary, reason: str, converged: bool, method: str, num_probes: int
    ) -> Estimate:
        first = self.plan.first_probe
        return Estimate(
            value=summary.value,
            stderr=summary.stderr,
            method=method,
            num_probes=num_probes,
            num_matvecs=self.product.num_matvecs,
            degrees_of_freedom=summary.degrees_of_freedom,
            converged=converged,
            reason=reason,
            seed=self.plan.seed,
            kind=self.plan.kind,
            size=self.product.space.size,
            samples=summary.samples,
            probe_ranges=((first, first + num_probes),) if num_probes else (),
            mergeable=self.estimator.mergeable and num_probes > 0,
            bias=summary.bias,
            history=tuple(self.history),
        )

    def _text(self) -> str:
        summary = self._summary()
        return f"{summary.level:.6g} +- {summary.half_width:.2g}"

    def _warn(self) -> None:
        products, level, half = self.history[-1]
        target = self.plan.tolerance(abs(level))
        advice = (
            f"raise max_matvecs to about {math.ceil(1.1 * products * (half / target) ** 2)}"
            if target > 0
            else "give atol, because a tolerance relative to 0 cannot be met"
        )
        warnings.warn(
            f"{self.estimator.method} stopped at its budget of {products} products with a "
            f"95 % half-width of {half:.3g} where {target:.3g} was asked for "
            f"(value {level:.6g}); {advice}, or loosen rtol.",
            ConvergenceWarning,
            stacklevel=5,
        )
