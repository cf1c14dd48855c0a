"""The section on the diagonal."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np

import matfree as mf
from matfree import plotting
from matfree.arrays import to_host
from matfree.cli.report import cells
from matfree.cli.report.document import Column, Figure, Finding, Section, Table
from matfree.cli.study import Exact, Study
from matfree.results import Estimate

_BLOCK = 8  # probes between two looks for the table


NAMES = {"xdiag": "XDiag", "deflated": "deflation"}


class Stage(NamedTuple):
    """The state after some number of probes; 2-norms relative to the diagonal's."""

    num_probes: int
    bar: float
    error: float | None
    covered: float | None
    """The fraction of entries whose interval holds the exact one."""


def section(study: Study) -> Section:
    """Sample, and show how the entries settle."""
    arguments = study.sampling()
    watch = _Watch(study.exact)
    estimate = mf.diagonal(
        study.operator,
        block_size=_BLOCK,
        progress=study.settings.progress,
        callback=watch,
        **arguments,
    )
    last = stage(estimate, study.exact)
    rivals = [
        mf.diagonal(study.operator, progress=study.settings.progress, **arguments)
        for _, arguments in study.rivals(*NAMES, num_matvecs=estimate.num_matvecs)
    ]
    compared = [(found, stage(found, study.exact)) for found in rivals]
    sampled = (_table(study, [*watch.stages, last]),) if estimate.num_probes else ()
    beside = (_comparison(study, [(estimate, last), *compared]),) if rivals else ()
    return Section(
        key="diagonal",
        title="Diagonal, by Hutchinson's estimator",
        text=_text(study, estimate),
        code=study.call("diagonal", **arguments),
        tables=(*sampled, *beside),
        figures=tuple(_figure(study, found) for found in (estimate, *rivals[-1:])),
        findings=tuple(_finding(state, found) for found, state in ((estimate, last), *compared)),
        values=_values(last, estimate, study.exact)
        | {"compared": {e.method: _values(state, e, study.exact) for e, state in compared}},
        results={f"{study.prefix}-diagonal": estimate},
    )


def stage(estimate: Estimate, exact: Exact | None) -> Stage:
    """How good an estimate of a diagonal is, by its own account and in truth."""
    value, half = to_host(estimate.value), to_host(estimate.half_width())
    size = float(np.linalg.norm(value)) or 1.0
    bar = float(np.linalg.norm(to_host(estimate.stderr))) / size
    if exact is None:
        return Stage(estimate.num_probes, bar, None, None)
    gap = np.abs(value - exact.diagonal)
    error = float(np.linalg.norm(gap)) / (float(np.linalg.norm(exact.diagonal)) or 1.0)
    covered = float(np.mean(gap <= half + exact.rounding))
    return Stage(estimate.num_probes, bar, error, covered)


@final
class _Watch:
    """A callback that keeps the state each time the number of probes has doubled."""

    def __init__(self, exact: Exact | None) -> None:
        self._exact = exact
        self._next = _BLOCK
        self.stages: list[Stage] = []

    def __call__(self, estimate: Estimate) -> None:
        if estimate.num_probes >= self._next:
            self.stages.append(stage(estimate, self._exact))
            self._next = 2 * estimate.num_probes


def _text(study: Study, estimate: Estimate) -> tuple[str, ...]:
    A = study.letter
    if not estimate.num_probes:
        return (f"The diagonal is exact here: {estimate.reason}.",)
    method = (
        f"The same products give every diagonal entry: w ∘ ({A} w), entry by entry, has diag {A} "
        "as its mean. An entry's variance is what the rest of its row holds, squared and summed, "
        "so a diagonal that is weak beside its rows takes many probes."
    )
    if not estimate.converged:
        return (method, f"Not converged: {estimate.reason}. The intervals are right, only wide.")
    return (method,)


def _table(study: Study, stages: list[Stage]) -> Table:
    stages = [s for j, s in enumerate(stages) if j == 0 or s.num_probes > stages[j - 1].num_probes]
    if study.exact is None:
        return Table(
            "Standard error of all entries together, relative to the diagonal (2-norms):",
            (Column("probes"), Column("standard error", 3)),
            tuple((s.num_probes, s.bar) for s in stages),
        )
    return Table(
        "Expected and actual error, relative to the diagonal (2-norms), and the fraction of "
        "entries whose 95 % interval holds the exact value:",
        (Column("probes"), Column("standard error", 3), Column("error", 3), Column("inside", 3)),
        tuple(tuple(s) for s in stages),
    )


def _comparison(study: Study, compared: list[tuple[Estimate, Stage]]) -> Table:
    titles = [Column("method"), Column("products"), Column("standard error", 3)]
    if study.exact is not None:
        titles += [Column("error", 3), Column("inside", 3)]
    rows = []
    for estimate, state in compared:
        known = () if study.exact is None else (state.error, state.covered)
        rows.append((estimate.method, estimate.num_matvecs, state.bar, *known))
    return Table(
        "Methods that find the few largest eigenvalues first, and sample only the rest, for as "
        "many products:",
        tuple(titles),
        tuple(rows),
    )


def _finding(last: Stage, estimate: Estimate) -> Finding:
    return Finding(
        "diagonal" if estimate.method not in NAMES else f"diagonal, by {NAMES[estimate.method]}",
        f"{estimate.value.shape[0]:,} entries",
        f"± {cells.percent(last.bar)} in the 2-norm" if estimate.num_probes else "exact",
        None if last.error is None else f"{cells.percent(last.error)} off",
        None if last.covered is None else f"{cells.percent(last.covered)} of them",
        estimate.num_matvecs,
    )


def _values(last: Stage, estimate: Estimate, exact: Exact | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "relative_stderr": last.bar,
        "method": estimate.method,
        "num_probes": estimate.num_probes,
        "num_matvecs": estimate.num_matvecs,
        "converged": estimate.converged,
        "reason": estimate.reason,
        "seed": estimate.seed,
    }
    if exact is not None:
        values |= {"relative_error": last.error, "inside": last.covered}
    return values


def _figure(study: Study, estimate: Estimate) -> Figure:
    def draw(ax: Any) -> None:
        plotting.plot_diagonal(estimate, study.exact and study.exact.diagonal, ax=ax)

    by = NAMES.get(estimate.method, "Hutchinson's estimator")
    caption = "Every entry with its own 95 % interval."
    if study.exact is not None:
        caption += (
            " Sorted by the exact diagonal, the line; about 5 % of the intervals should miss it."
        )
    name = f"{study.prefix}-diagonal"
    if estimate.method in NAMES:
        name += f"-{estimate.method}"
    return Figure(name, f"The diagonal, by {by}", caption, draw)
