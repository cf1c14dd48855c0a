"""The section on the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np

import matfree as mf
from matfree import plotting
from matfree.cli.report.cells import MISSED
from matfree.cli.report.document import Cell, Column, Figure, Finding, Measured, Table
from matfree.cli.sections.base import SampledSection
from matfree.digits import number, supported_interval
from matfree.results import Estimate


@final
class TraceSection(SampledSection):
    """The trace, with its interval by number of probes."""

    title = "Trace, by Hutchinson's estimator"
    key = quantity = "trace"
    other_methods: ClassVar = {"xtrace": "XTrace", "deflated": "deflation"}
    columns = (Column("value"), Column("half-width", 2))
    exact_columns = (Column("exact"), Column("error", 2), Column("inside", remark=MISSED))

    def run(self, **arguments: Any) -> Estimate:
        """Estimate the trace."""
        progress = self.study.settings.progress
        return mf.trace(self.study.operator, progress=progress, **arguments)

    def method_text(self) -> str:
        """Why Hutchinson's estimator works."""
        study = self.study
        return (
            f"For a vector w of {study.probe_entries}, the mean of w{study.adjoint}"
            f"{study.symbol} w is the trace: the diagonal contributes exactly, and the "
            "contribution of all other entries has mean zero. The mean over independent probes "
            "has a confidence interval, from the variance that the matvecs show, which contains "
            "the trace in 95 of 100 runs."
        )

    def convergence(self) -> Table:
        """The running mean after 2, 4, 8 ... probes."""
        rows: list[tuple[Cell, ...]] = []
        for m in powers_of_two(self.estimate.num_probes):
            first = self.estimate.first(m)
            rows.append((m, *self.cells(first), *self.exact_cells(first)))
        columns = (Column("probes"), Column("mean"), Column("half-width", 2))
        return self.table("Running mean, with its 95 % interval:", columns, rows)

    def cells(self, estimate: Estimate) -> Sequence[Cell]:
        """The value and the half-width of its interval."""
        half = estimate.half_width()
        return Measured(real_if_close(estimate.value), half), half

    def exact_cells(self, estimate: Estimate) -> Sequence[Cell]:
        """The exact trace, the error, and whether the interval contains the exact trace."""
        return self._compared(estimate.value, estimate.half_width())

    def figures(self) -> tuple[Figure, ...]:
        """The running mean."""
        exact = None if self.study.exact is None else float(np.real(self.study.exact.trace))
        if not self.estimate.num_probes:
            return ()
        return (
            self.figure(
                "trace",
                "Hutchinson's trace estimate",
                "Four times as many probes halve the interval. Every dot is the estimate of one "
                "probe; only their mean converges.",
                f"The running mean of the samples against the number of probes, 1 to "
                f"{self.estimate.num_probes} on a logarithmic axis, with a band that narrows to "
                f"{self.estimate:±}"
                + ("." if exact is None else f"; a line marks the exact trace, {number(exact)}."),
                lambda ax: plotting.plot_trace(self.estimate, exact, ax=ax),
            ),
        )

    def finding(self, estimate: Estimate) -> Finding:
        """The trace, with its interval."""
        low, high = estimate.interval()
        exact = self.study.exact
        return Finding(
            self.quantity_by(estimate),
            Measured(real_if_close(estimate.value), estimate.half_width()),
            f"{supported_interval(low, high)}, 95 %" if estimate.num_probes else "exact",
            None if exact is None else real_if_close(exact.trace),
            None if exact is None else exact.inside(low, high, exact.trace),
            estimate.num_matvecs,
        )

    def own_values(self, estimate: Estimate) -> dict[str, Any]:
        """The trace, with its interval."""
        low, high = estimate.interval()
        values = {
            "value": real_if_close(estimate.value),
            "stderr": estimate.stderr,
            "interval": [low, high],
            "level": 0.95,
        }
        if (exact := self.study.exact) is not None:
            inside = exact.inside(low, high, exact.trace)
            values |= {"exact": real_if_close(exact.trace), "inside": inside}
        return values

    def _compared(self, value: Any, half: float) -> tuple[Cell, ...]:
        exact = self.study.exact
        if exact is None:
            return ()
        inside = exact.inside(np.real(value) - half, np.real(value) + half, exact.trace)
        return real_if_close(exact.trace), abs(value - exact.trace), inside


def powers_of_two(last: int) -> list[int]:
    """2, 4, 8, ... and the last number."""
    return [*(2**j for j in range(1, last.bit_length()) if 2**j < last), last]


def real_if_close(value: complex) -> float | complex:
    """The real part if the imaginary part is a rounding error; otherwise the value."""
    return complex(value) if abs(np.imag(value)) > 1e-8 * abs(value) else float(np.real(value))
