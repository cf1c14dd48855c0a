"""The section on the largest eigenvalues."""

from __future__ import annotations

from typing import Any

import matfree as mf
from matfree import plotting
from matfree.algorithms.eigen.power_iteration import PowerStep
from matfree.cli.report import cells
from matfree.cli.report.document import Column, Figure, Finding, Section, Table
from matfree.cli.study import Study
from matfree.progress import Progress
from matfree.results import EigenResult

MAX_STEPS = 1000
"""Steps for one pair."""

_SHOWN = frozenset({1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500})


def section(study: Study) -> Section:
    """Iterate, and show how each pair came to rest."""
    result = _iterate(study)
    return Section(
        key="eigenvalues",
        title="Largest eigenvalues, by power iteration",
        text=_text(study, result),
        code=study.call(
            "power_iteration",
            len(result.values),
            rtol=study.settings.eigen_rtol,
            seed=study.settings.seed,
        ),
        tables=(_steps(study, result), _pairs(result)),
        figures=(_figure(study, result),),
        findings=_findings(study, result),
        values=_values(study, result),
        results={f"{study.prefix}-eigenvalues": result},
    )


def _iterate(study: Study) -> EigenResult:
    k = min(study.settings.top, study.operator.shape[0])
    with Progress("power iteration", study.settings.progress) as bar:
        bar.start(k * MAX_STEPS)

        def show(state: PowerStep) -> None:
            text = f"pair {state.pair + 1}, step {state.step}, residual {state.residual:.1e}"
            bar.show(state.pair * MAX_STEPS + state.step, lambda: text)

        return mf.power_iteration(
            study.operator,
            k,
            rtol=study.settings.eigen_rtol,
            max_steps=MAX_STEPS,
            seed=study.settings.seed,
            callback=show,
        )


def _text(study: Study, result: EigenResult) -> tuple[str, ...]:
    A = study.letter
    method = (
        f"Multiply a random vector by {A} again and again, and normalise it each time. It turns "
        "towards the eigenvector of the eigenvalue largest in magnitude, and its Rayleigh "
        f"quotient θ = v{study.adjoint}{A} v towards that eigenvalue. The residual ‖{A} v - θ v‖ "
        f"is a certificate: some eigenvalue of {A} lies within it of θ, always. Each further "
        "pair is found in the orthogonal complement of those before."
    )
    still = [j + 1 for j, done in enumerate(result.converged) if not done]
    if still:
        shortfall = (
            f"Not converged in {MAX_STEPS} steps: pair {', '.join(map(str, still))}. The "
            "certificate holds all the same; eigenvalues of nearly equal magnitude are slow to "
            "tell apart, and those of opposite sign cannot be."
        )
        return (method, shortfall)
    return (method,)


def _steps(study: Study, result: EigenResult) -> Table:
    """Selected steps of every pair, beside the exact eigenvalue where it is known."""
    titles = [Column("pair"), Column("step"), Column("θ", 10), Column("residual", 2)]
    truth = None if study.exact is None else study.exact.largest(len(result.values))
    if truth is not None:
        titles += [Column("exact", 10), Column("error", 2)]
    rows: list[tuple[float, ...]] = []
    for pair in range(len(result.values)):
        steps = [entry for entry in result.history if entry[0] == pair]
        for step, (_, theta, residual) in enumerate(steps, start=1):
            if step in _SHOWN or step == len(steps):
                row = (pair + 1, step, theta, residual)
                known = () if truth is None else (float(truth[pair]), abs(theta - truth[pair]))
                rows.append((*row, *known))
    return Table(
        f"Step by step (residual relative to ‖{study.letter}‖; once it is small, θ errs by "
        "about its square):",
        tuple(titles),
        tuple(rows),
    )


def _pairs(result: EigenResult) -> Table:
    columns = ["pair", "eigenvalue", "within", "converged"]
    rows = [
        (j + 1, float(value), float(residual * result.norm), bool(done))
        for j, (value, residual, done) in enumerate(
            zip(result.values, result.residuals, result.converged, strict=True)
        )
    ]
    digits = {"eigenvalue": 10, "within": 2}
    return Table(
        f"The pairs found, with {result.num_matvecs} products:",
        tuple(Column(title, digits.get(title, 6)) for title in columns),
        tuple(rows),
    )


def _findings(study: Study, result: EigenResult) -> tuple[Finding, ...]:
    findings = []
    for j, (value, low, high) in enumerate(_certificates(result)):
        done = bool(result.converged[j])
        exact, inside = None, None
        if study.exact is not None:
            exact = float(study.exact.largest(j + 1)[j])
            inside = study.exact.inside(low, high, exact)
        findings.append(
            Finding(
                f"eigenvalue {j + 1}, by magnitude" + ("" if done else ": NOT CONVERGED"),
                value,
                f"± {cells.number((high - low) / 2, 2)}, certain",
                exact,
                inside,
                result.num_matvecs if j == 0 else None,
            )
        )
    return tuple(findings)


def _certificates(result: EigenResult) -> list[tuple[float, float, float]]:
    radii = result.residuals * result.norm
    return [
        (float(value), float(value - radius), float(value + radius))
        for value, radius in zip(result.values, radii, strict=True)
    ]


def _values(study: Study, result: EigenResult) -> dict[str, object]:
    values: dict[str, object] = {
        "values": result.values.tolist(),
        "residuals": (result.residuals * result.norm).tolist(),
        "intervals": [[low, high] for _, low, high in _certificates(result)],
        "converged": result.converged.tolist(),
        "num_matvecs": result.num_matvecs,
        "seed": result.seed,
    }
    if study.exact is not None:
        exact = study.exact.largest(len(result.values))
        values["exact"] = exact.tolist()
        values["inside"] = [
            study.exact.inside(low, high, truth)
            for (_, low, high), truth in zip(_certificates(result), exact, strict=True)
        ]
    return values


def _figure(study: Study, result: EigenResult) -> Figure:
    truth = None if study.exact is None else study.exact.largest(len(result.values))
    caption = "Each step shrinks the residual by the ratio of the next eigenvalue to this one."
    if truth is not None:
        caption += " The error of the eigenvalue itself (dashed) falls twice as fast."

    def draw(ax: Any) -> None:
        plotting.plot_power(result, truth, ax=ax)

    return Figure(f"{study.prefix}-eigenvalues", "Power iteration", caption, draw)
