"""The one loop of every sampling estimator: blocks of probes, looks, budgets, reports.

What is estimated is an :class:`Accumulator`'s business; how many probes that takes is
decided here. Looks at the tolerance fall on fixed numbers of probes (20, then a quarter
more each time), so that neither the block size nor a callback changes the answer.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from matfree.algorithms.products import HostArray, Products
from matfree.errors import ConvergenceWarning, Interrupted
from matfree.probes import resolve_seed
from matfree.progress import Progress
from matfree.protocol import Array, ProbeKind, Seed
from matfree.results import Estimate
from matfree.results.estimate import student_quantile

DEFAULT_PROBES = 32
"""Probes where neither their number nor a tolerance is given."""

DEFAULT_BUDGET = 1000
"""Products where a tolerance is given without a budget."""

FIRST_LOOK = 20
"""Probes before the first look: an error bar from fewer is itself too uncertain."""

_LOOK_GROWTH = 1.25
_BLOCK_ENTRIES = 1 << 24  # entries of the default block of probes


class Summary(NamedTuple):
    """What an accumulator has to say at a look."""

    value: Any
    stderr: Any
    size: float
    """|value|, or the 2-norm of an array."""
    bar: float
    """The standard error's size, likewise."""
    samples: HostArray | None

    @property
    def level(self) -> float:
        """The number that a history shows: the value's real part, or an array's size."""
        return self.size if hasattr(self.value, "shape") else float(self.value.real)


class Accumulator(ABC):
    """What becomes of the products of probes."""

    method: str

    @abstractmethod
    def add(self, W: Array, Y: Array) -> HostArray:
        """Take in probes W and products Y = A W; host numbers that all of Y went into."""

    @abstractmethod
    def add_exact(self, E: Array, Y: Array) -> HostArray:
        """Take in unit vectors E and their products instead."""

    @abstractmethod
    def summary(self, num_probes: int) -> Summary:
        """The estimate from the probes taken in so far."""

    @abstractmethod
    def exact(self) -> Summary:
        """The answer from all n unit vectors."""


@final
@dataclass(frozen=True)
class Plan:
    """How many probes at most, when to look, and when the exact answer is affordable."""

    limit: int
    rtol: float | None
    atol: float | None
    exact_affordable: bool

    @classmethod
    def make(
        cls,
        size: int,
        *,
        num_probes: int | None,
        rtol: float | None,
        atol: float | None,
        max_matvecs: int | None,
    ) -> Plan:
        """Read the four arguments that every estimator has, or say what is wrong with them."""
        for name, count in (("num_probes", num_probes), ("max_matvecs", max_matvecs)):
            if count is not None and (not _is_whole(count) or count < 1):
                raise ValueError(f"{name} must be a whole number, at least 1: got {count!r}.")
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            if tolerance is not None and not (0 <= tolerance < math.inf):
                raise ValueError(f"{name} must be finite and not negative: got {tolerance}.")
        adaptive = rtol is not None or atol is not None
        if num_probes is not None and (adaptive or max_matvecs is not None):
            raise ValueError(
                "give either num_probes (a fixed number) or rtol/atol with max_matvecs (as many "
                "as needed), not both."
            )
        if num_probes is not None:
            return cls(num_probes, None, None, exact_affordable=False)
        budget = max_matvecs or (DEFAULT_BUDGET if adaptive else DEFAULT_PROBES)
        if budget < size:
            return cls(budget, rtol, atol, exact_affordable=False)
        # n unit vectors settle it: sample only while that leaves enough to do so.
        before = min(size, budget - size) if adaptive else 0
        return cls(before if before >= FIRST_LOOK else 0, rtol, atol, exact_affordable=True)

    @property
    def adaptive(self) -> bool:
        """Whether a tolerance was given."""
        return self.rtol is not None or self.atol is not None

    def looks(self) -> Iterator[int]:
        """Numbers of probes after which the tolerance is looked at, ending with the limit."""
        look = float(FIRST_LOOK)
        while self.adaptive and look < self.limit:
            yield int(look)
            look *= _LOOK_GROWTH
        if self.limit:
            yield self.limit

    def tolerance(self, size: float) -> float:
        """The half-width to reach for a value of this size."""
        return (self.atol or 0.0) + (self.rtol or 0.0) * size


def estimate(
    A: Any,
    accumulator_for: Callable[[Products], Accumulator],
    *,
    num_probes: int | None,
    rtol: float | None,
    atol: float | None,
    max_matvecs: int | None,
    block_size: int | None,
    seed: Seed,
    kind: ProbeKind,
    progress: bool,
    callback: Callable[[Estimate], bool | None] | None,
) -> Estimate:
    """Run an accumulator over probes until the plan is fulfilled."""
    product = Products(A)
    plan = Plan.make(
        product.space.size,
        num_probes=num_probes,
        rtol=rtol,
        atol=atol,
        max_matvecs=max_matvecs,
    )
    accumulator = accumulator_for(product)
    run = _Run(product, accumulator, plan, resolve_seed(seed), kind)
    block = block_size_for(product.space.size, block_size)
    with Progress(accumulator.method, plan.limit or product.space.size, progress) as bar:
        try:
            return run.complete(block, bar, callback)
        except KeyboardInterrupt as stop:
            if not run.done:
                raise
            raise Interrupted(run.result("interrupted", converged=False)) from stop


def block_size_for(size: int, block_size: int | None) -> int:
    """The number of vectors to send at once: as asked, or what fits a moderate memory."""
    if block_size is None:
        return max(1, min(32, _BLOCK_ENTRIES // size))
    if not _is_whole(block_size) or block_size < 1:
        raise ValueError(f"block_size must be a whole number, at least 1: got {block_size!r}.")
    return block_size


@final
class _Run:
    """The state of one estimation: how many probes are done and what they gave."""

    def __init__(
        self,
        product: Products,
        accumulator: Accumulator,
        plan: Plan,
        seed: int,
        kind: ProbeKind,
    ) -> None:
        self.product, self.accumulator, self.plan = product, accumulator, plan
        self.seed, self.kind = seed, kind
        self.done = 0
        self.history: list[tuple[int, float, float]] = []

    def complete(
        self,
        block: int,
        bar: Progress,
        callback: Callable[[Estimate], bool | None] | None,
    ) -> Estimate:
        for look in self.plan.looks():
            while self.done < look:
                self._advance(min(block, look - self.done))
                bar.show(self.done, self._text if bar.visible else None)
                if callback is not None and _stops(callback, self.result("under way")):
                    return self.result("stopped by the callback", converged=not self.plan.adaptive)
            if self._note() and self.plan.adaptive:
                return self.result(f"tolerance met after {self.done} probes", converged=True)
        if self.plan.exact_affordable:
            return self._exact(block, bar)
        if not self.plan.adaptive:
            return self.result(f"all {self.done} probes done", converged=True)
        self._warn()
        return self.result("the budget of products ended first", converged=False)

    def result(self, reason: str, *, converged: bool = False) -> Estimate:
        """The estimate as it stands."""
        summary = self.accumulator.summary(self.done)
        return self._estimate(summary, reason, converged, self.accumulator.method, self.done)

    def _advance(self, count: int) -> None:
        W = self.product.space.probes(count, seed=self.seed, start=self.done, kind=self.kind)
        self.product.require_finite(self.accumulator.add(W, self.product(W)))
        self.done += count

    def _note(self) -> bool:
        """Write the state into the history; whether it is within the tolerance."""
        summary = self.accumulator.summary(self.done)
        half = student_quantile(0.95, self.done - 1) * summary.bar
        self.history.append((self.product.num_matvecs, summary.level, half))
        return half <= self.plan.tolerance(summary.size)

    def _exact(self, block: int, bar: Progress) -> Estimate:
        n = self.product.space.size
        for begin in range(0, n, block):
            E = self.product.space.unit_vectors(range(begin, min(begin + block, n)))
            self.product.require_finite(self.accumulator.add_exact(E, self.product(E)))
            bar.show(begin, None)
        summary = self.accumulator.exact()
        self.history.append((self.product.num_matvecs, summary.level, 0.0))
        reason = f"the budget allowed the exact answer, from all {n} unit vectors"
        return self._estimate(summary, reason, True, "exact", 0)

    def _estimate(
        self, summary: Summary, reason: str, converged: bool, method: str, num_probes: int
    ) -> Estimate:
        return Estimate(
            value=summary.value,
            stderr=summary.stderr,
            method=method,
            num_probes=num_probes,
            num_matvecs=self.product.num_matvecs,
            degrees_of_freedom=num_probes - 1 if num_probes else math.inf,
            converged=converged,
            reason=reason,
            seed=self.seed,
            samples=summary.samples,
            history=tuple(self.history),
        )

    def _text(self) -> str:
        return _interval_text(self.accumulator.summary(self.done), self.done)

    def _warn(self) -> None:
        products, level, half = self.history[-1]
        target = self.plan.tolerance(abs(level))
        advice = (
            f"raise max_matvecs to about {math.ceil(1.1 * products * (half / target) ** 2)}"
            if target > 0
            else "give atol, because a tolerance relative to 0 cannot be met"
        )
        warnings.warn(
            f"{self.accumulator.method} stopped at its budget of {products} products with a "
            f"95 % half-width of {half:.3g} where {target:.3g} was asked for "
            f"(value {level:.6g}); {advice}, or loosen rtol.",
            ConvergenceWarning,
            stacklevel=5,
        )


def _interval_text(summary: Summary, num_probes: int) -> str:
    half = student_quantile(0.95, num_probes - 1) * summary.bar
    return f"{summary.level:.6g} +- {half:.2g}"


def _stops(callback: Callable[[Estimate], bool | None], state: Estimate) -> bool:
    """Whether the callback asks to stop: by returning True or raising StopIteration."""
    try:
        return callback(state) is True
    except StopIteration:
        return True


def _is_whole(number: Any) -> bool:
    return hasattr(number, "__index__") and not isinstance(number, bool)
