"""The run of ``apply_function``: Lanczos steps until every column has converged, then the values.

Convergence is determined from the tridiagonal matrices alone, so that Lanczos vectors are needed
only once at the end.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, final

import numpy as np

from matfree.algorithms.functions.argument_vectors import ArgumentVectors
from matfree.algorithms.functions.function_of_nodes import FunctionOfNodes
from matfree.algorithms.functions.krylov_iterates import Choice, KrylovIterates
from matfree.algorithms.functions.partly_stored import PartlyStoredLanczos
from matfree.algorithms.krylov.coefficients import Coefficients
from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.arguments import require_tolerance
from matfree.arrays import is_complex
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import HostArray
from matfree.results import StoppingReason
from matfree.results.solving.function_values import FunctionValues

_CHECK_RATIO = 1.1  # the ratio of the numbers of steps at which convergence is checked

# A user's function may have a kink in a part of the spectrum that has no Ritz value yet, so that it
# is first checked after twice as many steps.

_CHECKED_CLOSELY = 200  # steps after which the ratio is larger, because a check costs steps^3
_LATER_RATIO = 1.25


class FunctionStep(NamedTuple):
    """What a callback is given after each convergence check."""

    num_matvecs: int
    """The number of matvecs so far."""
    num_steps: int
    """The number of Lanczos steps so far."""
    error: HostArray
    """(T, k) float64: the estimated errors of all vectors, absolute."""
    norm: HostArray
    """(T, k) float64: the norms of f(t A) b."""


class FunctionTolerance(NamedTuple):
    """The tolerance on the 2-norms of errors."""

    rtol: float
    """Relative to ||f(t A) b||."""
    atol: float

    @classmethod
    def of_arguments(cls, rtol: float | None, atol: float | None, eps: float) -> FunctionTolerance:
        """The tolerance, or the default one if none is given."""
        require_tolerance("rtol", rtol)
        require_tolerance("atol", atol)
        if rtol is None:
            rtol = max(1e-6, 100 * eps) if atol is None else 0.0
        return cls(rtol, atol or 0.0)

    def of(self, norms: HostArray) -> HostArray:
        """The largest admissible errors."""
        return np.asarray(self.atol + self.rtol * norms)


class IterateErrors(NamedTuple):
    """The state of convergence after some steps; arrays are (T, k)."""

    choices: list[Choice]
    """Per start vector."""
    norms: HostArray
    errors: HostArray
    """Without rounding errors."""
    rounding: HostArray

    @property
    def total(self) -> HostArray:
        """The errors with rounding errors."""
        return self.errors + self.rounding

    @property
    def relative(self) -> float:
        """The largest error relative to the norm of its vector; 0 for zero vectors."""
        norms = np.where(self.norms > 0, self.norms, 1.0)
        return float(np.max(np.where(self.norms > 0, self.total / norms, 0.0), initial=0.0))


@final
class FunctionRun:
    """The recurrences of all columns, and the iterates of the functions.

    Parameters
    ----------
    A : CountedOperator
    vectors : ArgumentVectors
        At least one of which is not zero.
    f : FunctionOfNodes
    t_shape : () or (T,)
    tolerance : FunctionTolerance
    lanczos : PartlyStoredLanczos
    run : Run
    memory : dict
        The description of the storage, for the result.
    """

    def __init__(
        self,
        A: CountedOperator,
        vectors: ArgumentVectors,
        f: FunctionOfNodes,
        *,
        t_shape: tuple[int, ...],
        tolerance: FunctionTolerance,
        lanczos: PartlyStoredLanczos,
        run: Run[FunctionStep],
        memory: dict[str, Any],
    ) -> None:
        self.A, self.vectors, self.f, self.t_shape = A, vectors, f, t_shape
        self.tolerance, self.lanczos, self.run, self.memory = tolerance, lanczos, run, memory
        self.checks = steps_of_checks(lanczos.num_steps)
        if not f.is_named:
            self.checks -= {STEPS_PER_CHECK}
        self.history: list[tuple[int, int, float]] = []

    def complete(self) -> FunctionValues:
        """The values, once all columns have converged or the steps are completed."""
        if not self.lanczos.has_steps:
            self.lanczos.advance(self.run.checkpoint)
        while True:
            active = self.lanczos.active
            if active.step in self.checks or active.finished:
                found = self._evaluate(active.coefficients)
                reason = self._reason(found, active.finished)
                if reason is not None:
                    return self._result(found, reason)
            self.lanczos.advance(self.run.checkpoint)
            self.run.bar.show(self.lanczos.active.step)

    def interrupted(self) -> FunctionValues | None:
        """The values from the stored Lanczos vectors; None if there are none."""
        stored = self.lanczos.stored
        if stored is None or not stored.coefficients.on_host:
            return None
        self.lanczos.tail = None
        return self._result(self._evaluate(stored.coefficients), StoppingReason.INTERRUPTED)

    def _evaluate(self, coefficients: Coefficients) -> IterateErrors:
        alphas, betas, _ = coefficients.trimmed()
        exact = np.asarray(coefficients.ends.any(axis=0))
        stored = self.lanczos.tail is None
        self._iterates, choices = [], []
        for p, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
            complete = bool(exact[p]) or (stored and len(alpha) == self.A.space.size)
            f = self._complete_f if complete else self.f
            self._iterates.append(KrylovIterates(alpha, beta, f, self.f.eps))
            choices.append(self._iterates[p].choose(exact=complete))
        lengths = self.vectors.lengths[:, None]
        norms, errors, rounding = (
            self.vectors.per_column(lengths * np.stack([getattr(c, name) for c in choices]))
            for name in ("norms", "errors", "rounding")
        )
        found = IterateErrors(choices, norms, errors, rounding)
        self.history.append((self.A.num_matvecs, len(coefficients.on_host), found.relative))
        return found

    def _complete_f(self, nodes: HostArray) -> HostArray:
        """f at nodes that are all eigenvalues in their Krylov space."""
        return self.f(nodes, complete=True)

    def _reason(self, found: IterateErrors, finished: bool) -> str | None:
        """Why the run stops; None if it continues."""
        allowed = self.tolerance.of(found.norms)
        state = FunctionStep(self.A.num_matvecs, self.lanczos.active.step, found.total, found.norms)
        if np.all(found.total <= allowed):
            return StoppingReason.TOLERANCE
        if np.all((found.total <= allowed) | (found.errors <= found.rounding)):
            return StoppingReason.ROUNDING
        if self.run.is_stopped(lambda: state):
            return StoppingReason.CALLBACK
        return StoppingReason.BUDGET if finished else None

    def _result(self, found: IterateErrors, reason: str) -> FunctionValues:
        """The values of the chosen iterates."""
        coordinates = [
            self._coordinates(p, choice) * length
            for p, (choice, length) in enumerate(
                zip(found.choices, self.vectors.lengths, strict=True)
            )
        ]
        complex_f = any(np.iscomplexobj(Y) for Y in coordinates)
        if complex_f and not is_complex(self.A.space.xp, self.A.space.dtype):
            coordinates = [np.hstack((Y.real, Y.imag)) for Y in coordinates]
        X = self.lanczos.combine(coordinates, self.run.checkpoint, self.run.bar.show)
        shape = self.t_shape + (() if self.vectors.is_vector else (self.vectors.num_columns,))
        converged = found.total <= self.tolerance.of(found.norms)
        twice = self.lanczos.replay is not None
        result = FunctionValues(
            values=self.vectors.assemble(X, self.t_shape, complex_f),
            error=_shaped(found.total, shape),
            converged=_shaped(converged, shape),
            t=_shaped(self.f.t, self.t_shape),
            num_matvecs=self.A.num_matvecs,
            num_steps=len(self.lanczos.active.coefficients.on_host),
            method="Lanczos, run twice" if twice else "Lanczos",
            reason=reason,
            history=tuple(self.history),
            memory=self.memory,
            rows=self.A.space.row_range,
        )
        if not converged.all():
            self._warn(found, reason)
        return result

    def _coordinates(self, p: int, choice: Choice) -> HostArray:
        """The coordinates of the chosen iterates of a start vector, (steps, T)."""
        longest = int(choice.steps.max())
        columns = []
        for i, j in enumerate(choice.steps.tolist()):
            y = self._iterates[p].coordinates(j)[:, i]
            columns.append(np.pad(y, (0, longest - j)))
        return np.stack(columns, axis=1)

    def _warn(self, found: IterateErrors, reason: str) -> None:
        missing = int((found.total > self.tolerance.of(found.norms)).sum())
        if reason == StoppingReason.ROUNDING:
            advice = (
                f"rounding in {self.A.space.dtype} limits the error; loosen rtol, or pass an "
                "operator of higher precision"
            )
        else:
            advice = "raise max_matvecs, or loosen rtol"
        warn(
            f"{missing} of {found.total.size} vectors f(A) b did not reach the tolerance within "
            f"{self.A.num_matvecs} matvecs (largest error {found.relative:.1e} of ||f(A) b||; "
            f"{reason}): {advice}.",
            ConvergenceWarning,
        )


def steps_of_checks(most: int) -> set[int]:
    """The numbers of steps after which convergence is checked."""
    steps, check = set(), float(STEPS_PER_CHECK)
    while check < most:
        step = STEPS_PER_CHECK * math.ceil(check / STEPS_PER_CHECK)
        steps.add(step)
        growth = _CHECK_RATIO if step < _CHECKED_CLOSELY else _LATER_RATIO
        check = max(step + STEPS_PER_CHECK, growth * step)
    return steps


def _shaped(numbers: HostArray, shape: tuple[int, ...]) -> Any:
    """The numbers in this shape; a Python number for the shape ()."""
    found = numbers.reshape(shape)
    return found if shape else found.item()
