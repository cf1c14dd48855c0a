"""The run of ``solve``: groups of right-hand sides, true residuals, and changes of the method.

The residuals of a recurrence drift away from those of the solution that it computes. Therefore the
run computes R = B - A X when a solver ends, and starts it again with the columns of R that exceed
the tolerance. A start that does not halve a residual is the last one of its column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.algorithms.solving.conjugate_gradients import ConjugateGradients
from matfree.algorithms.solving.preconditioners import NystromPreconditioner
from matfree.algorithms.solving.right_hand_sides import RightHandSides
from matfree.algorithms.solving.solver import (
    Solver,
    SolveStep,
    add_columns,
    has_adjoint,
    take_columns,
)
from matfree.arrays import epsilon, to_host
from matfree.errors import NotHermitianError
from matfree.protocol import Array, HostArray
from matfree.results import StoppingReason

_WORTHWHILE = 0.5
"""The factor by which a start of a solver has to reduce a residual to be repeated."""


MakeSolver = Callable[[str, Array, HostArray, HostArray], Solver]
"""It makes a solver of the named method for a block, with its norms and targets."""


@final
class SolveRun:
    """The solutions so far, and the present solver.

    Parameters
    ----------
    A : CountedOperator
        A + shift I.
    adjoint : CountedOperator
        Its adjoint, which may be unknown.
    run : Run
    B : RightHandSides
    targets : (k,) float64
        The norms that the residuals of ``B.block`` have to reach.
    start : (rows, k), optional
        The start vectors, for the scaled right-hand sides.
    method : {"auto", "cg", "minres", "lsmr"}
    make : function
    nystrom : NystromPreconditioner, optional
        The preconditioner that ``make`` uses, which is computed at the beginning of the run.
    width : int
        The number of right-hand sides that are solved together.
    budget : int
        The largest number of matvecs.
    """

    saved: tuple[str, ...] = (
        *("X", "begin", "open", "relative", "closed", "method", "names", "num_steps", "reason"),
        *("history", "norm", "num_adjoint", "solver", "limit", "least_quotient", "least_squares"),
        "is_restart",
    )
    by_row: ClassVar = {"X": 0}

    def __init__(
        self,
        A: CountedOperator,
        adjoint: CountedOperator,
        run: Run[SolveStep],
        B: RightHandSides,
        targets: HostArray,
        *,
        start: Array | None,
        method: str,
        make: MakeSolver,
        nystrom: NystromPreconditioner | None,
        width: int,
        budget: int,
    ) -> None:
        k = len(B.norms)
        self.A, self.adjoint, self.run, self.B, self.targets = A, adjoint, run, B, targets
        self.make, self.width, self.budget, self.has_start = make, width, budget, start is not None
        self.may_change, self.nystrom = method == "auto", nystrom
        if nystrom is not None:
            self.saved = (*self.saved, "nystrom")
        self.method = "cg" if self.may_change else method
        self.X = A.space.zeros(k) if start is None else start
        self.relative = np.where(B.norms > 0, 1.0, 0.0)
        """(k,) float64: the residuals relative to the norms of the right-hand sides."""
        self.closed = B.norms == 0
        """(k,) bool: the columns whose residuals no further start would reduce."""
        self.least_squares = np.zeros(k, dtype=bool)
        """(k,) bool: the least-squares solutions with a residual that remains."""
        self.begin, self.limit, self.num_steps, self.num_adjoint, self.norm = 0, 0, 0, 0, 0.0
        self.least_quotient = np.inf
        self.open: HostArray = np.zeros(0, dtype=int)
        self.names: list[str] = []
        self.history: list[tuple[int, float]] = []
        self.reason: str = StoppingReason.RESIDUALS
        self.is_stopped = self.is_restart = False
        self.solver: Solver | None = None

    @property
    def num_matvecs(self) -> int:
        """The number of matvecs with A and with A^H."""
        return self.A.num_matvecs + self.adjoint.num_matvecs

    @property
    def converged(self) -> HostArray:
        """(k,) bool: which residuals are within the tolerance."""
        return np.asarray(self.relative * self.B.norms <= self.targets)

    def complete(self) -> None:
        """Solve one group of right-hand sides after the other."""
        k = len(self.B.norms)
        if self.nystrom is not None and not self.closed.all():
            self.nystrom.find()
            self.run.save()
        while self.begin < k and not self.is_stopped:
            columns = np.arange(self.begin, min(self.begin + self.width, k))
            if not self._has_stored_solver:
                share = (self.budget - self.num_matvecs) * len(columns) // (k - self.begin)
                self.limit = self.num_matvecs + share
            self._solve(columns)
            self.begin += len(columns)

    def resume(self, problem: dict[str, Any]) -> None:
        """Restore the state from the checkpoint, if there is one."""
        self.run.checkpoint.resume(problem, self)
        self.budget += self.run.checkpoint.overhead
        self.adjoint.num_matvecs += self.num_adjoint

    def _solve(self, columns: HostArray) -> None:
        """Start solvers until every column of a group has converged or was given up."""
        target = self.A.operator.space
        if self._has_stored_solver:
            columns = self.open
            self._advance(take_columns(target, self.B.block, columns))
            R = self._finish(columns)
        else:
            R, self.is_restart = take_columns(target, self.B.block, columns), False
            if self.has_start:
                R = self._update_residuals(columns, R)
        while not self.is_stopped:
            chosen = ~(self.converged | self.closed)[columns]
            if not chosen.any():
                return
            R, columns = take_columns(target, R, np.flatnonzero(chosen)), columns[chosen]
            if self.num_matvecs + 2 * len(columns) > self.limit:
                self._stop_because(StoppingReason.BUDGET)
                return
            self.open = columns
            if self._advance(R):
                R = self._finish(columns)

    @property
    def _has_stored_solver(self) -> bool:
        """Whether the checkpoint contains a solver that was not restored yet."""
        return self.run.checkpoint.has_object("solver")

    def _advance(self, R: Array) -> bool:
        """Run a solver for the open columns; False if another method has to be tried."""
        own = self.open
        norms, targets = self.relative[own] * self.B.norms[own], self.targets[own]
        if self.is_restart:  # a residual just above the tolerance must not end just above it again
            targets = np.minimum(targets, 0.5 * _WORTHWHILE * norms)
        self.solver = solver = self.make(self.method, R, norms, targets)
        self.run.checkpoint.resume_object("solver", solver)
        if solver.name not in self.names:
            self.names.append(solver.name)
        try:
            while not solver.is_finished:
                if self.num_matvecs + solver.cost + len(own) > self.limit:
                    self._stop_because(StoppingReason.BUDGET)
                    break
                solver.advance()
                if self._report(solver):
                    self._stop_because(StoppingReason.CALLBACK)
                    break
        except NotHermitianError:
            if not self._try_adjoint():
                raise
            self.num_steps += solver.num_steps
            return False
        return True

    def _try_adjoint(self) -> bool:
        """Change to LSMR if the method is free and the adjoint is known."""
        if not self.may_change or not has_adjoint(self.A.operator):
            return False
        self.method, self.solver, self.may_change = "lsmr", None, False
        return True

    def _finish(self, columns: HostArray) -> Array:
        """Add the solver's solution to X, and compute the true residuals (rows, k)."""
        solver, space = self.solver, self.A.space
        assert solver is not None
        self.solver, self.is_restart = None, True
        self.num_steps += solver.num_steps
        self.norm = max(self.norm, solver.norm)
        self.least_quotient = min(self.least_quotient, solver.least_quotient)
        target = self.A.operator.space
        before, X = self.relative.copy(), self.X
        if solver.num_steps:
            self.X = add_columns(space, X, columns, solver.solution())
        R = take_columns(target, self.B.block, columns)
        if solver.num_steps or self.has_start:
            R = self._update_residuals(columns, R)
        worse = self.relative[columns] > before[columns]
        if worse.any():  # keep the better vectors
            back = take_columns(space, X - self.X, columns[worse])
            self.X = add_columns(space, self.X, columns[worse], back)
            R = self._update_residuals(columns, take_columns(target, self.B.block, columns))
        self.least_squares[columns] |= solver.least_squares & ~self.converged[columns]
        self._decide(solver, columns, before)
        self.history.append((self.num_matvecs, float(self.relative.max())))
        return R

    def _decide(self, solver: Solver, columns: HostArray, before: HostArray) -> None:
        """Close columns that another start would not improve, or change the method."""
        closed = self.least_squares[columns]
        indefinite = isinstance(solver, ConjugateGradients) and (
            solver.is_indefinite or solver.is_singular
        )
        if indefinite and self.may_change:
            self.method = "minres"
        elif indefinite:
            self._stop_because(StoppingReason.INDEFINITE)
        elif not self.is_stopped:
            stuck = self.relative[columns] > _WORTHWHILE * before[columns]
            closed = closed | stuck
        self.closed[columns] |= closed & ~self.converged[columns]

    def _update_residuals(self, columns: HostArray, B: Array) -> Array:
        """B - A X for some columns, whose relative norms are recorded."""
        R = B - self.A(take_columns(self.A.space, self.X, columns))
        norms = to_host(self.A.operator.space.norms(R))
        self.A.require_finite(norms)
        sizes = self.B.norms[columns]
        self.relative[columns] = np.where(sizes > 0, norms / np.where(sizes > 0, sizes, 1), 0.0)
        return R

    def _report(self, solver: Solver) -> bool:
        """Record the step and save the state; whether the callback asks to stop."""
        current = self.relative.copy()
        current[self.open] = solver.residuals / self.B.norms[self.open]
        self.history.append((self.num_matvecs, float(current.max())))
        self.num_adjoint = self.adjoint.num_matvecs
        done = int((current * self.B.norms <= self.targets).sum())
        self.run.bar.show(done, lambda: f"{self.num_matvecs} matvecs, residual {current.max():.1e}")
        self.run.save()
        return self.run.is_stopped(lambda: SolveStep(self.num_matvecs, current))

    def _stop_because(self, reason: str) -> None:
        self.reason = reason
        self.is_stopped = reason != StoppingReason.BUDGET

    def interrupt(self) -> None:
        """Add the present solver's solution to X when the user interrupts the run."""
        if self.solver is not None and self.solver.num_steps:
            solver, own = self.solver, self.open
            self.X = add_columns(self.A.space, self.X, own, solver.solution())
            self.relative[own] = solver.residuals / self.B.norms[own]
            self.num_steps += solver.num_steps
        self.reason = StoppingReason.INTERRUPTED

    def final_reason(self) -> str:
        """Why the run stopped, from what became of all columns."""
        wrong = ~self.converged
        if self.reason in (StoppingReason.CALLBACK, StoppingReason.INTERRUPTED):
            return self.reason
        if not wrong.any():
            return StoppingReason.RESIDUALS
        if self.reason != StoppingReason.RESIDUALS:
            return self.reason
        if np.all(self.least_squares | ~wrong):
            rectangular = self.A.operator.shape[0] != self.A.operator.shape[1]
            return StoppingReason.LEAST_SQUARES if rectangular else StoppingReason.INCOMPATIBLE
        eps = epsilon(self.A.space.xp, self.A.space.dtype)
        sizes = to_host(self.A.space.norms(self.X)) * self.norm + self.B.norms
        drift = self.relative * self.B.norms > 1e3 * eps * sizes
        stuck = wrong & ~self.least_squares & drift
        return StoppingReason.INCONSISTENT if stuck.any() else StoppingReason.ROUNDING
