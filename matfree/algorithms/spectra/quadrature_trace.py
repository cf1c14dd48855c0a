"""The trace of a function by the Lanczos quadrature of every probe.

The number of steps is fixed, or it is determined by a tolerance: then the recurrences of the first
probes continue until the quadrature bias is a small part of the tolerance.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK, Reorthogonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.spectra.gauss_quadrature import gauss_rule, recurrence_coefficients
from matfree.algorithms.spectra.quadrature_estimators import QuadratureEstimator
from matfree.algorithms.spectra.spectral_functions import (
    Function,
    FunctionName,
    PowerOfSingularValues,
    SpectralFunction,
)
from matfree.algorithms.traces.hutchinson import Samples
from matfree.arguments import slices
from matfree.arrays import epsilon, is_complex, rounding
from matfree.protocol import HostArray
from matfree.quadratures.bias import (
    QuadratureBias,
    QuadratureSettings,
    require_spectrum,
    require_within,
)
from matfree.quadratures.brackets import Spectrum
from matfree.results import Tridiagonal
from matfree.results.intervals import student_quantile

_BIAS_SHARE = 0.25  # of the tolerance, which leaves most of it to the sampling error

_STEP_GROWTH = 1.25  # ratio of the numbers of steps after which the bias is computed


class QuadratureTrace(QuadratureEstimator):
    """The mean of ||w||^2 sum_j tau_j f(theta_j) over probes, raised to ``exponent``.

    Parameters
    ----------
    A, plan, num_steps, reorthogonalize
        As for ``QuadratureEstimator``.
    f : function of a float64 array, or its name
    spectrum : (float or None, float or None), optional
        Bounds of the spectrum.
    grows : bool
        Whether a tolerance may increase the number of steps.
    absolute_power : float, optional
        p if f(x) = |x|^p; f is then a ``PowerOfSingularValues``.
    exponent : float
    method : str
    """

    saved: tuple[str, ...] = (
        "samples",
        "moved",
        "coefficients",
        "squares",
        "cost",
        "columns",
        "deflated",
        "recurrence",
    )

    def __init__(
        self,
        A: CountedOperator,
        plan: Plan,
        num_steps: int,
        reorthogonalize: Reorthogonalize,
        *,
        f: Function | FunctionName,
        spectrum: Spectrum | None = None,
        grows: bool = False,
        absolute_power: float | None = None,
        exponent: float = 1.0,
        method: str = QuadratureEstimator.method,
    ) -> None:
        super().__init__(A, plan, num_steps, reorthogonalize)
        self.power = f if isinstance(f, PowerOfSingularValues) else None
        self.evaluate = SpectralFunction(f, epsilon(self.space.xp, self.space.dtype))
        self.rounding = rounding(self.space.xp, self.space.dtype)
        self.spectrum, self.grows = require_spectrum(spectrum), grows
        self.bias = QuadratureBias(f, absolute_power=absolute_power)
        self.bias_advice = self.bias.advice
        self.exponent, self.method = exponent, method
        self.mergeable = exponent == 1  # the mean of two roots is not the root of the mean
        self.inside: complex = 0.0
        """The sum of f over the eigenvalues that are projected out."""
        self.inaccuracy = 0.0
        """A bound on its error."""
        self.first_blocks: list[Tridiagonal] = []
        """The blocks with which the number of steps was determined, until they are recorded."""
        self._clear()

    def _clear(self) -> None:
        self.samples = Samples(self.plan.kind, self.space.size)
        self.coefficients: list[HostArray] = []
        """Per probe the diagonal and the off-diagonal of T, (2, steps)."""
        self.squares: list[float] = []
        """||w||^2 per probe."""
        self.moved: list[float] = []
        """The change of every sample when its nodes move by the error of a 16-bit basis, or, for
        powers of singular values, by their rounding errors."""

    def identity(self, budget: int) -> dict[str, Any]:
        values = self.evaluate.values_at_points()
        return {**super().identity(budget), "f at five points": values}

    def prepare(self, budget: int) -> int:
        self.deflate(budget)
        if len(self.deflated.values):
            known = self.evaluate(self.deflated.values)
            self.inside = np.sum(known).item()
            # The eigenvalues of the complement have errors of the same size.
            nearer = self.deflated.values - np.sign(self.deflated.values) * self.deflated.residuals
            self.inaccuracy = 2 * float(np.sum(np.abs(self.evaluate(nearer) - known)))
        budget -= self.deflated.cost
        # Without a basis, the memory does not depend on the number of steps.
        growing = self.grows and self.plan.adaptive and self.reorthogonalize == "none"
        if self.memory and self.plan.block_size < self.first_check:
            growing = False
        if growing and not self.samples.values.size and budget >= self.cost:
            self._determine_steps(budget)
        return super().prepare(budget + self.deflated.cost)

    def _determine_steps(self, budget: int) -> None:
        """Run the probes of the first check until their bias is a small part of the tolerance.

        At most the budget is spent on them. All other probes get as many steps. The recurrences
        of all these probes are in memory at once, so that the block size changes no result.
        """
        count = next(self.check_points(budget // self.cost))
        most = min(self.space.size, max(self.cost, budget // count))
        blocks = [
            self._recurrence(self.probes(part.start, part.stop - part.start), most)
            for part in slices(count, self.plan.block_size)
        ]
        if len(blocks) > 1:  # a checkpoint holds one recurrence only
            self.recurrence = None
        checks = _steps_of_checks(self.cost, most)
        while pending := [block for block in blocks if not block.finished]:
            step = min(block.step for block in pending)
            behind = [block for block in pending if block.step == step]
            complete = len(behind) == len(pending)
            if complete and step in checks and self._is_accurate([b.result() for b in blocks]):
                break
            for block in behind:
                block.advance()
                self.block_done()
        self.recurrence, self.first_blocks = None, [block.result() for block in blocks]
        self.cost = max(self.cost, *(block.step for block in blocks))

    def _is_accurate(self, blocks: list[Tridiagonal]) -> bool:
        """Whether the bias of all probes so far is a small part of the tolerance."""
        trial = copy.copy(self)
        trial.cost = max(len(alphas) for T in blocks for alphas in T.alphas)
        trial._clear()
        for T in blocks:
            trial._record_all(T)
        summary = trial.summary()
        return summary.bias <= _BIAS_SHARE * self.plan.tolerance(summary.norm)

    def advance(self, start: int, count: int) -> None:
        if self.first_blocks:
            self._record_all(self.first_blocks.pop(0))
        else:
            super().advance(start, count)

    def record(self, T: Tridiagonal, p: int) -> None:
        rule, squared = gauss_rule(T, p, self.cost, self.rounding), T.start_norms[p] ** 2
        error = T.node_error(p)
        slack = self.rounding * float(np.abs(rule.nodes).max()) + error
        require_within(rule.nodes, self.spectrum, slack)
        values = self.evaluate(rule.nodes)
        full = squared * (rule.weights @ values)
        self.coefficients.append(recurrence_coefficients(T, p))
        self.squares.append(squared)
        if T.node_errors:  # move nodes inwards: f may be undefined outside the spectrum
            middle = (rule.nodes[0] + rule.nodes[-1]) / 2
            inwards = rule.nodes + error * np.sign(middle - rule.nodes)
            moved = squared * (rule.weights @ self.evaluate(inwards)) - full
            self.moved.append(float(abs(moved)))
        elif self.power is not None:
            uncertain = rule.weights @ self.power.uncertainty(rule.nodes)
            self.moved.append(squared * float(uncertain))
        deviation = self._deviation(values, rule.weights, squared)
        self.samples.add(np.asarray([full + self.inside]), deviation)

    def _deviation(self, values: HostArray, weights: HostArray, squared: float) -> HostArray:
        """The deviation of the sample, from the quadrature of f^2; see ``results.intervals``.

        It is that from a multiple of the identity, unless probes are Gaussian; for random signs,
        its mean square is at least the variance.
        """
        complex_probes = is_complex(self.space.xp, self.space.dtype)
        factor = 1.0 if complex_probes and self.plan.kind != "rademacher" else 2.0
        lengths = []
        for part in (values.real, values.imag):
            mean, offset = weights @ part, 0.0
            if self.plan.kind != "gaussian":  # ||w||^2 is not n if eigenvectors are projected out
                offset = abs(mean) * math.sqrt(max(1 - squared / self.space.size, 0.0))
                part = part - mean
            lengths.append(math.hypot(np.linalg.norm(np.sqrt(weights) * part), offset))
        deviation = complex(*lengths) if np.iscomplexobj(values) else lengths[0]
        return math.sqrt(factor * squared) * np.asarray([deviation])

    def sum_over(self, eigenvalues: HostArray) -> complex:
        # A stored matrix is exact, and its eigenvalues are computed in double precision.
        stored = self.A.operator.holds_entries
        eps = len(eigenvalues) * float(np.finfo(np.float64).eps) if stored else None
        total: complex = np.sum(self.evaluate(eigenvalues, complete=True, eps=eps)).item()
        return total

    def uncertainty(self, eigenvalues: HostArray) -> float:
        return 0.0 if self.power is None else float(np.sum(self.power.uncertainty(eigenvalues)))

    def summary(self) -> Summary:
        # Checkpoints of version 0.1 have samples without coefficients, whose bias is unknown.
        missing = self.samples.values.size - len(self.squares)
        settings = QuadratureSettings(self.cost, self.rounding, self.spectrum)
        bias = self.bias(self.coefficients, [*self.squares, *[0.0] * missing], settings)
        bias += float(np.mean(self.moved or [0.0])) + self.inaccuracy
        return power_of(self.samples.summary()._replace(bias=bias), self.exponent)

    def exact(self) -> Summary:
        return power_of(super().exact(), self.exponent)


def _steps_of_checks(first: int, most: int) -> set[int]:
    """The numbers of steps from ``first`` on at which the bias is computed."""
    steps, check = set(), float(first)
    while check < most:
        steps.add(STEPS_PER_CHECK * math.ceil(check / STEPS_PER_CHECK))
        check *= _STEP_GROWTH
    return steps


def power_of(summary: Summary, exponent: float) -> Summary:
    """A power of a nonnegative estimate.

    The 95 % interval and the bias are propagated exactly, and the wider half of the interval
    determines the standard error.
    """
    if exponent == 1:
        return summary
    value, error = max(float(summary.value), 0.0), summary.stderr
    root = _power(value, exponent)
    quantile = student_quantile(0.95, summary.degrees_of_freedom)
    if 0 < error < math.inf and quantile < math.inf:
        error = _widest(value, quantile * error, exponent) / quantile
    bias = _widest(value, summary.bias, exponent)
    return Summary(root, error, root, error, summary.degrees_of_freedom, bias=bias)


def _widest(value: float, half_width: float, exponent: float) -> float:
    """The larger half of the power of an interval."""
    lowest, root, highest = (
        _power(x, exponent) for x in (max(value - half_width, 0.0), value, value + half_width)
    )
    return max(root - lowest, highest - root)


def _power(x: float, exponent: float) -> float:
    """A power of a nonnegative number; inf instead of an OverflowError."""
    with np.errstate(over="ignore"):
        return float(np.float64(x) ** exponent)
