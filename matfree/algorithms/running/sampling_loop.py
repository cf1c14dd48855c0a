"""The one loop of every sampling estimator: blocks of probes, looks, budgets, reports.

What is estimated is an :class:`Estimator`'s business; how many probes that takes is
decided here. Looks at the tolerance fall on fixed numbers of probes, so that neither the
block size nor a callback changes the answer.
"""

from __future__ import annotations

import math
import warnings
from typing import final

import numpy as np

from matfree.algorithms.running.callbacks import Callback, asked_to_stop
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike, restore
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator, Summary
from matfree.errors import ConvergenceWarning, Interrupted
from matfree.progress import Progress
from matfree.results import Estimate


def estimate(
    A: CountedOperator,
    estimator: Estimator,
    *,
    progress: bool,
    callback: Callback | None,
    checkpoint: PathLike | None = None,
) -> Estimate:
    """Run an estimator over probes until its plan is fulfilled."""
    run = _Run(A, estimator, callback, checkpoint)
    with Progress(estimator.method, progress) as bar:
        try:
            return run.complete(bar)
        except KeyboardInterrupt as stop:
            if not run.done:
                raise
            raise Interrupted(run.result("interrupted", converged=False)) from stop


@final
class _Run:
    """One estimation: how many probes are done, and what was seen at the looks."""

    saved = ("done", "history")

    def __init__(
        self,
        A: CountedOperator,
        estimator: Estimator,
        callback: Callback | None,
        checkpoint: PathLike | None,
    ) -> None:
        self.A, self.estimator, self.plan = A, estimator, estimator.plan
        self.callback, self.path = callback, checkpoint
        self.checkpoint: Checkpoint | None = None
        self.done = 0
        self.latest: tuple[int, Summary] | None = None
        self.history: list[tuple[int, float, float]] = []

    def complete(self, bar: Progress) -> Estimate:
        sampling_budget, exact_affordable = self._split_budget()
        if self.path is not None:
            self._resume(self.path, sampling_budget)
        limit = self.estimator.prepare(sampling_budget) if sampling_budget else 0
        if self.done > limit and limit:
            raise ValueError(
                f"the checkpoint holds {self.done} probes already, and only {limit} were asked "
                "for; ask for as many or more."
            )
        bar.start(limit or self.A.space.size)
        for check_point in self.estimator.check_points(limit):
            if check_point < self.done:  # looked at before the run was interrupted
                continue
            self.estimator.reserve(check_point)
            while self.done < check_point:
                count = min(self.plan.block_size, check_point - self.done)
                self.estimator.advance(self.done, count)
                self.done += count
                self._save()
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

    def _resume(self, path: PathLike, budget: int) -> None:
        """Open the checkpoint, and go on from where its run was."""
        plan, estimator = self.plan, self.estimator
        problem = {
            "estimator": type(estimator).__name__,
            "seed": plan.seed,
            "kind": plan.kind,
            "first_probe": plan.first_probe,
            **estimator.identity(budget),
        }
        self.checkpoint = Checkpoint(path, self.A, problem)
        for holder in (self, estimator):
            restore(holder, self.checkpoint.state, self.A.space)
        estimator.block_done, estimator.checkpoint = self._save, self.checkpoint

    def _save(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(self, self.estimator)

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
        size, budget = self.A.space.size, self.plan.budget
        if self.plan.num_probes is not None or budget < size:
            return budget, False
        before = min(size, budget - size) if self.plan.adaptive else 0
        enough = before >= self.estimator.first_check * self.estimator.cost
        return (before if enough else 0), True

    def _met(self) -> bool:
        """Write the state into the history; whether it is within the tolerance."""
        summary = self._summary()
        self.history.append((self.A.num_matvecs, summary.level, summary.half_width))
        return self.plan.adaptive and summary.half_width <= self.plan.tolerance(summary.size)

    def _exact(self) -> Estimate:
        summary = self.estimator.exact()
        self.history.append((self.A.num_matvecs, summary.level, 0.0))
        n = self.A.space.size
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
            num_matvecs=self.A.num_matvecs,
            degrees_of_freedom=summary.degrees_of_freedom,
            converged=converged,
            reason=reason,
            seed=self.plan.seed,
            kind=self.plan.kind,
            size=self.A.space.size,
            samples=summary.samples,
            probe_ranges=((first, first + num_probes),) if num_probes else (),
            mergeable=self.estimator.mergeable and num_probes > 0,
            bias=summary.bias,
            history=tuple(self.history),
            rows=self.A.space.row_range if np.ndim(summary.value) else None,
            memory=self.estimator.memory,
        )

    def _text(self) -> str:
        summary = self._summary()
        return f"{summary.level:.6g} +- {summary.half_width:.2g}"

    def _warn(self) -> None:
        products, level, half = self.history[-1]
        target, bias = self.plan.tolerance(abs(level)), self._summary().bias
        if target == 0:
            advice = "give atol, because a tolerance relative to 0 cannot be met"
        elif bias >= target:
            advice = f"raise num_steps, because {bias:.3g} of it is the quadrature's"
        else:
            factor = ((half - bias) / (target - bias)) ** 2
            advice = f"raise max_matvecs to about {math.ceil(1.1 * products * factor)}"
        warnings.warn(
            f"{self.estimator.method} stopped at its budget of {products} products with a "
            f"95 % half-width of {half:.3g} where {target:.3g} was asked for "
            f"(value {level:.6g}); {advice}, or loosen rtol.",
            ConvergenceWarning,
            stacklevel=5,
        )
