"""The loop of every sampling estimator: blocks of probes, convergence checks and budgets.

An :class:`Estimator` knows what is estimated; this loop decides how many probes that takes.
Convergence is checked after fixed numbers of probes, so that neither the block size nor a
callback changes the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import numpy as np

from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Estimator, Summary
from matfree.algorithms.running.keywords import Sampling
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.run import Run
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import ProbeKind
from matfree.quadratures.bias import warn_unknown
from matfree.results import EigenResult, Estimate, StoppingReason
from matfree.results.intervals import is_informative


def sample(
    A: CountedOperator,
    make: Callable[[CountedOperator, Plan], Estimator],
    options: Sampling[Estimate],
    *,
    kind: ProbeKind = "rademacher",
    eigenpairs: EigenResult | int = 0,
) -> Estimate:
    """Run an estimator over random probes until the tolerance is met or the budget is used.

    Parameters
    ----------
    A : CountedOperator
    make : function
        Constructs the estimator from the operator and the plan.
    options : Sampling
        The keywords of the public function.
    kind : the distribution of the probes unless ``options`` says otherwise
    eigenpairs : EigenResult or int
        Eigenpairs to deflate with, or how many of them to compute.
    """
    checkpoint = Checkpoint(options.get("checkpoint"), A, options.get("seed"))
    plan = Plan.make(A, options, seed=checkpoint.seed, kind=kind, eigenpairs=eigenpairs)
    estimator = make(A, plan)
    run = Run(
        estimator.method,
        checkpoint,
        progress=options.get("progress", False),
        callback=options.get("callback"),
    )
    loop = _SamplingLoop(A, estimator, run)
    return run.complete(A.space.size, loop.complete, loop.interrupted)


@final
class _SamplingLoop:
    """One estimation: the number of probes so far, and the history of convergence checks."""

    saved = ("done", "history")

    def __init__(self, A: CountedOperator, estimator: Estimator, run: Run[Estimate]) -> None:
        self.A, self.estimator, self.plan, self.run = A, estimator, estimator.plan, run
        estimator.checkpoint = run.checkpoint
        self.done = 0
        self.latest: tuple[int, Summary] | None = None
        self.history: list[tuple[int, float, float]] = []

    def complete(self) -> Estimate:
        sampling_budget, exact_affordable = self._split_budget()
        if not exact_affordable:
            self.plan.require_budget(self.estimator.least_matvecs, self.estimator.unit)
        self._resume(sampling_budget)
        limit = self.estimator.prepare(sampling_budget) if sampling_budget else 0
        if self.done > limit and limit:
            raise ValueError(
                f"the checkpoint already holds {self.done} probes, and only {limit} were "
                "requested; request as many or more."
            )
        self.run.bar.start(limit or self.A.space.size)
        for check_point in self.estimator.check_points(limit):
            if check_point < self.done:  # this check was made before the run was interrupted
                continue
            if self._advance_to(check_point):
                return self.result(StoppingReason.CALLBACK, converged=False)
            if self._met():
                return self.result(StoppingReason.TOLERANCE, converged=True)
        if exact_affordable:
            return self._exact()
        if not self.plan.adaptive:
            if math.isinf(self._summary().bias):
                warn_unknown(self.estimator.method, self.estimator.bias_advice)
            return self.result(StoppingReason.ALL_PROBES, converged=True)
        self._warn()
        return self.result(StoppingReason.BUDGET, converged=False)

    def _advance_to(self, check_point: int) -> bool:
        """Send probes up to the next convergence check; True if the callback stopped the run."""
        # At once for all blocks up to the check, because growing a basis copies it.
        self.estimator.reserve(check_point)
        while self.done < check_point:
            count = min(self.plan.block_size, check_point - self.done)
            self.estimator.advance(self.done, count)
            self.done += count
            self.run.save()
            self.run.bar.show(self.done, self._text)
            if self.run.is_stopped(lambda: self.result(StoppingReason.RUNNING, converged=False)):
                return True
        return False

    def _resume(self, budget: int) -> None:
        """Continue from the checkpoint."""
        plan, estimator = self.plan, self.estimator
        problem = {
            "estimator": type(estimator).__name__,
            "seed": plan.seed,
            "kind": plan.kind,
            "first_probe": plan.first_probe,
            **estimator.identity(budget),
        }
        self.run.checkpoint.resume(problem, self, estimator)

    def interrupted(self) -> Estimate | None:
        """The estimate when the user interrupts the run; None before the first probe."""
        if not self.done:
            return None
        return self.result(StoppingReason.INTERRUPTED, converged=False)

    def result(self, reason: StoppingReason, *, converged: bool) -> Estimate:
        """The estimate from the probes so far."""
        summary = self._summary()
        return self._estimate(summary, reason, converged, self.estimator.method, self.done)

    def _summary(self) -> Summary:
        """The estimator's summary, computed once per number of probes: it can be expensive."""
        if self.latest is None or self.latest[0] != self.done:
            summary = self.estimator.summary()._replace(widening=self.plan.widening)
            self.latest = self.done, summary
        return self.latest[1]

    def _split_budget(self) -> tuple[int, bool]:
        """The matvecs for sampling, and whether n unit vectors may follow.

        A budget of n matvecs suffices for the exact answer. Sampling comes first if there is a
        tolerance that it may meet sooner; it uses at most n matvecs and leaves n.
        """
        size, budget = self.A.space.size, self.plan.budget
        if self.plan.num_probes is not None or budget < size:
            return budget, False
        before = min(size, budget - size) if self.plan.adaptive else 0
        # Without enough matvecs for the first check, sampling could not end the run.
        enough = before >= self.estimator.first_check * self.estimator.cost
        return (before if enough else 0), True

    def _met(self) -> bool:
        """Append to the history, and return whether the tolerance is met."""
        summary = self._summary()
        self.history.append((self.A.num_matvecs, summary.level, summary.half_width))
        # The budget may allow fewer probes than the first check requires.
        enough = self.plan.adaptive and self.done >= self.estimator.first_check
        return enough and summary.half_width <= self.plan.tolerance(summary.norm)

    def _exact(self) -> Estimate:
        summary = self.estimator.exact()
        half, tolerance = summary.half_width, self.plan.tolerance(summary.norm)
        self.history.append((self.A.num_matvecs, summary.level, half))
        # Only norms of singular operators have a half-width other than 0 here.
        met = not self.plan.adaptive or half <= tolerance or half == 0
        reason = StoppingReason.EXACT if met else StoppingReason.ROUNDING
        if not met:
            warn(
                f"rounding leaves the exact answer of {self.estimator.method} uncertain by "
                f"{half:.3g}, and the tolerance is {tolerance:.3g} (value {summary.level:.6g}); "
                f"use an operator of higher precision, or loosen {self.plan.looser}.",
                ConvergenceWarning,
            )
        return self._estimate(summary, reason, met, "exact", 0)

    def _estimate(
        self,
        summary: Summary,
        reason: StoppingReason,
        converged: bool,
        method: str,
        num_probes: int,
    ) -> Estimate:
        first = self.plan.first_probe
        return Estimate(
            value=summary.value,
            stderr=summary.stderr,
            method=method,
            num_probes=num_probes,
            num_matvecs=self.A.num_matvecs,
            degrees_of_freedom=summary.degrees_of_freedom,
            converged=converged
            and is_informative(
                summary.norm, summary.half_width, summary.bias, size=self.A.space.size
            ),
            reason=reason,
            seed=self.plan.seed,
            kind=self.plan.kind,
            size=self.A.space.size,
            samples=summary.samples,
            deviations=summary.deviations,
            probe_ranges=((first, first + num_probes),) if num_probes else (),
            mergeable=self.estimator.mergeable and num_probes > 0,
            bias=summary.bias,
            widening=summary.widening,
            history=tuple(self.history),
            rows=self.A.space.row_range if np.ndim(summary.value) else None,
            memory=self.estimator.memory,
        )

    def _text(self) -> str:
        summary = self._summary()
        return f"{summary.level:.6g} +- {summary.half_width:.2g}"

    def _warn(self) -> None:
        num_matvecs, level, half = self.history[-1]
        target, bias = self.plan.tolerance(self._summary().norm), self._summary().bias
        warn(
            f"{self.estimator.method} stopped at its budget of {num_matvecs} matvecs with a "
            f"95 % half-width of {half:.3g}, but the tolerance is {target:.3g} "
            f"(value {level:.6g}); {self._advice(num_matvecs, half, target, bias)}.",
            ConvergenceWarning,
        )

    def _advice(self, num_matvecs: int, half: float, target: float, bias: float) -> str:
        """How to meet the tolerance: never more matvecs than the exact answer costs."""
        n = self.A.space.size
        loosen = f"loosen {self.plan.looser}"
        exact = f"raise max_matvecs to {n}, which gives the exact answer"
        missing = self.estimator.first_check - self.done
        if missing > 0 and math.isfinite(bias):
            least = num_matvecs + self.estimator.cost * missing
            if least >= n:
                return f"{exact}, or {loosen}"
            few = "one probe says" if self.done == 1 else f"{self.done} probes say"
            why = f"because {few} too little about the error"
            return f"raise max_matvecs, to {least} or more, {why}"
        if target == 0:
            return f"give atol, because a tolerance relative to 0 cannot be met, or {exact}"
        if bias >= target:
            size = f"{bias:.3g}" if math.isfinite(bias) else "unknown"
            why = f"because the quadrature bias alone is {size}"
            return f"{self.estimator.bias_advice}, {why}, or {exact}, or {loosen}"
        # The sampling error decreases like 1 / sqrt(num_matvecs), whereas the bias does not.
        root = math.sqrt(1.1 * num_matvecs) * ((half - bias) / (target - bias))
        if root >= math.sqrt(n):
            return f"{exact}, or {loosen}"
        return f"raise max_matvecs to about {math.ceil(root**2)}, or {loosen}"
