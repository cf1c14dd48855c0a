"""The section on the largest eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import matfree as mf
from matfree import plotting
from matfree.algorithms.eigen.power_search import PowerStep
from matfree.cli.report.cells import UNCONVERGED
from matfree.cli.report.document import Cell, Column, Figure, Finding, Saveable, Table
from matfree.cli.sections.base import StudySection
from matfree.cli.study import Study
from matfree.digits import number
from matfree.progress import Progress
from matfree.results import EigenResult

MAX_STEPS = 1000
"""The maximum number of steps for one pair."""

_TABULATED_STEPS = frozenset({1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500})


@final
class PowerSection(StudySection):
    """The largest eigenvalues, with the convergence of each pair."""

    key = "eigenvalues"
    title = "Largest eigenvalues, by power iteration"

    def __init__(self, study: Study) -> None:
        super().__init__(study)
        k = min(study.settings.top, study.operator.shape[0])
        with Progress("power iteration", study.settings.progress) as bar:
            bar.start(k * MAX_STEPS)

            def show(state: PowerStep) -> None:
                text = f"pair {state.pair + 1}, step {state.step}, residual {state.residual:.1e}"
                bar.show(state.pair * MAX_STEPS + state.step, lambda: text)

            self.pairs = mf.power_iteration(
                study.operator,
                k,
                rtol=study.settings.eigen_rtol,
                max_steps=MAX_STEPS,
                seed=study.settings.seed,
                callback=show,
            )
        exact = study.exact
        self.exact: list[float] | None = None if exact is None else exact.largest(k).tolist()

    def text(self) -> tuple[str, ...]:
        """Power iteration, its error bound, and the pairs that did not converge."""
        A, adjoint = self.study.symbol, self.study.adjoint
        method = (
            f"Power iteration applies {A} to a random vector repeatedly and normalizes the "
            "result. The vector v converges to the eigenvector of the eigenvalue that is largest "
            f"in magnitude, and its Rayleigh quotient θ = v{adjoint}{A} v to the eigenvalue. The "
            f"residual ‖{A} v - θ v‖ is a guaranteed error bound: {A} always has an eigenvalue "
            "within this distance of θ. Every further pair is computed in the orthogonal "
            "complement of the previous ones."
        )
        missing = [str(j + 1) for j, done in enumerate(self.pairs.converged) if not done]
        if not missing:
            return (method,)
        shortfall = (
            f"Not converged in {MAX_STEPS} steps: pair {', '.join(missing)}. The error bounds are "
            "still valid. Power iteration converges slowly if the next eigenvalue has nearly the "
            "same magnitude, and not at all if it has the opposite sign; `mf.eigsh` finds both."
        )
        return (method, shortfall)

    def code(self) -> str:
        """The call of ``power_iteration``."""
        settings = self.study.settings
        call = self.study.call(
            "power_iteration",
            len(self.pairs.values),
            rtol=settings.eigen_rtol,
            seed=settings.seed,
        )
        return f"pairs = {call}"

    def tables(self) -> tuple[Table, ...]:
        """Selected steps, and the pairs."""
        return self._steps(), self._pairs()

    def figures(self) -> tuple[Figure, ...]:
        """The residuals by step."""
        caption = (
            "In every step the residual decreases by the ratio of the next eigenvalue to this one."
        )
        if self.exact is not None:
            caption += " The error of the eigenvalue itself (dashed) converges twice as fast."
        return (
            self.figure(
                "eigenvalues",
                "Power iteration",
                caption,
                f"Residuals of {len(self.pairs.values)} eigenpairs on a logarithmic axis against "
                f"the steps; they decrease to {number(float(self.pairs.residuals.max()), 1)} of "
                "the norm or less.",
                lambda ax: plotting.plot_power(self.pairs, self.exact, ax=ax),
            ),
        )

    def findings(self) -> tuple[Finding, ...]:
        """One row for each pair."""
        rows = []
        for j, (value, low, high) in enumerate(guaranteed_intervals(self.pairs)):
            done = bool(self.pairs.converged[j])
            rows.append(
                Finding(
                    f"eigenvalue {j + 1}, by magnitude" + ("" if done else ": NOT CONVERGED"),
                    value,
                    f"± {number((high - low) / 2, 2)}, guaranteed",
                    None if self.exact is None else self.exact[j],
                    self._inside(j, low, high),
                    self.pairs.num_matvecs if j == 0 else None,
                )
            )
        return tuple(rows)

    def values(self) -> dict[str, Any]:
        """The eigenvalues, with their guaranteed intervals."""
        pairs, intervals = self.pairs, guaranteed_intervals(self.pairs)
        values: dict[str, Any] = {
            "values": pairs.values.tolist(),
            "residuals": (pairs.residuals * pairs.norm).tolist(),
            "intervals": [[low, high] for _, low, high in intervals],
            "converged": pairs.converged.tolist(),
            "num_matvecs": pairs.num_matvecs,
            "seed": pairs.seed,
        }
        if self.exact is not None:
            inside = [self._inside(j, low, high) for j, (_, low, high) in enumerate(intervals)]
            values |= {"exact": self.exact, "inside": inside}
        return values

    def results(self) -> Mapping[str, Saveable]:
        """The eigenpairs."""
        return {"eigenvalues": self.pairs}

    def _steps(self) -> Table:
        """Selected steps of every pair, with the exact eigenvalue if it is known."""
        titles = [Column("pair"), Column("step"), Column("θ", 10), Column("residual", 2)]
        if self.exact is not None:
            titles += [Column("exact", 10), Column("error", 2)]
        rows: list[tuple[Cell, ...]] = []
        for pair in range(len(self.pairs.values)):
            steps = [entry for entry in self.pairs.history if entry[0] == pair]
            for step, (_, theta, residual) in enumerate(steps, start=1):
                # The last step of a pair is always shown.
                if step not in _TABULATED_STEPS and step != len(steps):
                    continue
                row = (pair + 1, step, theta, residual)
                exact = None if self.exact is None else self.exact[pair]
                rows.append(row if exact is None else (*row, exact, abs(theta - exact)))
        return Table(
            f"Convergence by step (the residual is relative to ‖{self.study.symbol}‖; when it is "
            "small, the error of θ is about its square):",
            tuple(titles),
            tuple(rows),
        )

    def _pairs(self) -> Table:
        pairs = self.pairs
        radii = pairs.residuals * pairs.norm
        rows = [
            (j, float(value), float(radius), bool(done))
            for j, (value, radius, done) in enumerate(
                zip(pairs.values, radii, pairs.converged, strict=True), start=1
            )
        ]
        columns = (
            Column("pair"),
            Column("eigenvalue", 10),
            Column("error bound", 2),
            Column("converged", remark=UNCONVERGED),
        )
        return Table(f"The pairs, after {pairs.num_matvecs} matvecs:", columns, tuple(rows))

    def _inside(self, j: int, low: float, high: float) -> bool | None:
        """Whether an interval contains the exact eigenvalue; None if that is not known."""
        if self.study.exact is None or self.exact is None:
            return None
        return self.study.exact.inside(low, high, self.exact[j])


def guaranteed_intervals(result: EigenResult) -> list[tuple[float, float, float]]:
    """(value, low, high) for each pair: [low, high] always contains an eigenvalue."""
    radii = result.residuals * result.norm
    return [
        (float(value), float(value - radius), float(value + radius))
        for value, radius in zip(result.values, radii, strict=True)
    ]
