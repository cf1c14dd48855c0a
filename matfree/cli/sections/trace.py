"""The section on the trace."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import matfree as mf
from matfree import plotting
from matfree.cli.report import cells
from matfree.cli.report.document import Column, Figure, Finding, Section, Table
from matfree.cli.study import Study
from matfree.results import Estimate
from matfree.results.intervals import student_quantile

NAMES = {"xtrace": "XTrace", "deflated": "deflation"}


def section(study: Study) -> Section:
    """Sample, and show how the interval shrank."""
    arguments = study.sampling()
    estimate = mf.trace(study.operator, progress=study.settings.progress, **arguments)
    rivals = [
        mf.trace(study.operator, progress=study.settings.progress, **arguments)
        for _, arguments in study.rivals(*NAMES, num_matvecs=estimate.num_matvecs)
    ]
    sampled = (_running(study, estimate),) if estimate.samples is not None else ()
    compared = (_comparison(study, [estimate, *rivals]),) if rivals else ()
    return Section(
        key="trace",
        title="Trace, by Hutchinson's estimator",
        text=_text(study, estimate),
        code=study.call("trace", **arguments),
        tables=(*sampled, *compared),
        figures=() if estimate.samples is None else (_figure(study, estimate),),
        findings=tuple(_finding(study, found) for found in (estimate, *rivals)),
        values=_values(study, estimate)
        | {"compared": {found.method: _values(study, found) for found in rivals}},
        results={f"{study.prefix}-trace": estimate},
    )


def _text(study: Study, estimate: Estimate) -> tuple[str, ...]:
    A = study.letter
    if estimate.samples is None:
        return (f"The trace is exact here: {estimate.reason}.",)
    method = (
        f"For a vector w of {study.probe_entries}, w{study.adjoint}{A} w has the trace as its "
        "mean: the diagonal is seen exactly, everything else at random. The mean over "
        "independent probes comes with an interval, by Student's t, that holds the trace in 95 "
        "of 100 runs."
    )
    if not estimate.converged:
        shortfall = (
            f"Not converged: {estimate.reason}. The interval is right, only wider than asked "
            "for; raise --max-matvecs or --rtol."
        )
        return (method, shortfall)
    return (method,)


def _running(study: Study, estimate: Estimate) -> Table:
    """The running mean after 2, 4, 8 ... probes, beside the exact trace where known."""
    samples = np.asarray(estimate.samples)
    titles = [Column("probes"), Column("mean"), Column("half-width", 2)]
    if study.exact is not None:
        titles += [Column("exact"), Column("error", 2), Column("inside")]
    rows = []
    for m in doubling(samples.size):
        mean = samples[:m].mean().item()
        spread = np.sqrt(np.mean(np.abs(samples[:m] - mean) ** 2) / max(m - 1, 1))
        half = student_quantile(0.95, m - 1) * float(spread) if m > 1 else math.inf
        row: list[Any] = [m, plain(mean), half]
        if study.exact is not None:
            exact = study.exact.trace
            inside = study.exact.inside(np.real(mean) - half, np.real(mean) + half, exact)
            row += [plain(exact), abs(mean - exact), inside]
        rows.append(tuple(row))
    return Table("Probe by probe, with the 95 % interval:", tuple(titles), tuple(rows))


def _comparison(study: Study, estimates: list[Estimate]) -> Table:
    titles = [Column("method"), Column("products"), Column("value"), Column("half-width", 2)]
    if study.exact is not None:
        titles += [Column("exact"), Column("error", 2), Column("inside")]
    rows = []
    for found in estimates:
        row: list[Any] = [found.method, found.num_matvecs, plain(found.value), found.half_width()]
        if study.exact is not None:
            exact = study.exact.trace
            inside = study.exact.inside(*found.interval(), exact)
            row += [plain(exact), abs(found.value - exact), inside]
        rows.append(tuple(row))
    return Table(
        "Methods that find the few largest eigenvalues first, and sample only the rest, for as "
        "many products:",
        tuple(titles),
        tuple(rows),
    )


def doubling(last: int) -> list[int]:
    """2, 4, 8 ... and the last number."""
    return [*(2**j for j in range(1, last.bit_length()) if 2**j < last), last]


def plain(value: complex) -> float | complex:
    """A real number where the imaginary part is rounding."""
    return complex(value) if abs(np.imag(value)) > 1e-8 * abs(value) else float(np.real(value))


def _finding(study: Study, estimate: Estimate) -> Finding:
    low, high = estimate.interval()
    exact = None if study.exact is None else study.exact.trace
    return Finding(
        "trace" if estimate.method not in NAMES else f"trace, by {NAMES[estimate.method]}",
        plain(estimate.value),
        f"{cells.interval(low, high)}, 95 %" if estimate.samples is not None else "exact",
        None if exact is None else plain(exact),
        None if study.exact is None else study.exact.inside(low, high, exact),
        estimate.num_matvecs,
    )


def _values(study: Study, estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval()
    values = {
        "value": plain(estimate.value),
        "stderr": estimate.stderr,
        "interval": [low, high],
        "level": 0.95,
        "method": estimate.method,
        "num_probes": estimate.num_probes,
        "num_matvecs": estimate.num_matvecs,
        "converged": estimate.converged,
        "reason": estimate.reason,
        "seed": estimate.seed,
    }
    if study.exact is not None:
        exact = study.exact.trace
        values |= {"exact": plain(exact), "inside": study.exact.inside(low, high, exact)}
    return values


def _figure(study: Study, estimate: Estimate) -> Figure:
    exact = None if study.exact is None else float(np.real(study.exact.trace))

    def draw(ax: Any) -> None:
        plotting.plot_trace(estimate, exact, ax=ax)

    return Figure(
        f"{study.prefix}-trace",
        "Hutchinson's trace estimate",
        "Four times the probes halve the interval: the dots, one probe each, never settle, "
        "their mean does.",
        draw,
    )
