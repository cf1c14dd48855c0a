"""The section on the diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, final

import numpy as np

import matfree as mf
from matfree import plotting
from matfree.arrays import to_host
from matfree.cli.report.cells import percent
from matfree.cli.report.document import Cell, Column, Figure, Finding, Table
from matfree.cli.sections.base import SampledSection
from matfree.cli.study import ExactAnswers, Study
from matfree.results import Estimate

_BLOCK = 8  # probes between two calls of the callback


class DiagonalErrors(NamedTuple):
    """The errors of an estimated diagonal, in the 2-norm and relative to the diagonal."""

    num_probes: int
    stderr: float
    error: float | None
    covered: float | None
    """The fraction of entries whose interval contains the exact entry."""


@final
class DiagonalSection(SampledSection):
    """The diagonal, with the errors of its entries by number of probes."""

    title = "Diagonal, by Hutchinson's estimator"
    key = quantity = "diagonal"
    other_methods: ClassVar = {"xdiag": "XDiag", "deflated": "deflation"}
    columns = (Column("standard error", 3),)
    exact_columns = (Column("error", 3), Column("inside", 3))

    def __init__(self, study: Study) -> None:
        self._recorder = _ErrorRecorder(study.exact)
        super().__init__(study, block_size=_BLOCK, callback=self._recorder)

    def run(self, **arguments: Any) -> Estimate:
        """Estimate the diagonal."""
        progress = self.study.settings.progress
        return mf.diagonal(self.study.operator, progress=progress, **arguments)

    def method_text(self) -> str:
        """Why Hutchinson's estimator works, and when it is accurate."""
        A, w = self.study.symbol, self.study.conjugate_probe
        return (
            f"The same matvecs estimate every diagonal entry: the mean of {w} ∘ ({A} w), the "
            f"elementwise product, is diag {A}. The variance of an entry is the sum of the "
            "squares of the other entries of its row, so that a diagonal that is small compared "
            "with its rows needs many probes."
        )

    def convergence(self) -> Table:
        """The errors each time the number of probes has doubled."""
        errors = [*self._recorder.errors, self._errors(self.estimate)]
        rows = [
            e for j, e in enumerate(errors) if j == 0 or e.num_probes > errors[j - 1].num_probes
        ]
        columns = (Column("probes"), *self.columns)
        if self.study.exact is None:
            caption = "Standard error of all entries together, relative to the diagonal (2-norms):"
            return self.table(caption, columns, [row[:2] for row in rows])
        caption = (
            "Standard error and actual error, relative to the diagonal (2-norms), and the fraction "
            "of entries whose 95 % interval contains the exact value:"
        )
        return self.table(caption, columns, rows)

    def cells(self, estimate: Estimate) -> Sequence[Cell]:
        """The standard error."""
        return (self._errors(estimate).stderr,)

    def exact_cells(self, estimate: Estimate) -> Sequence[Cell]:
        """The actual error, and the fraction of entries that the intervals contain."""
        errors = self._errors(estimate)
        return errors.error, errors.covered

    def figures(self) -> tuple[Figure, ...]:
        """The entries by Hutchinson's estimator, and by the last of the other methods."""
        return tuple(map(self._plot, (self.estimate, *self.others[-1:])))

    def finding(self, estimate: Estimate) -> Finding:
        """The number of entries, and their errors."""
        errors = self._errors(estimate)
        return Finding(
            self.quantity_by(estimate),
            f"{estimate.value.shape[0]:,} entries",
            f"± {percent(errors.stderr)} in the 2-norm" if estimate.num_probes else "exact",
            None if errors.error is None else f"error {percent(errors.error)}",
            None if errors.covered is None else f"{percent(errors.covered)} of entries",
            estimate.num_matvecs,
        )

    def own_values(self, estimate: Estimate) -> dict[str, Any]:
        """The errors."""
        errors = self._errors(estimate)
        values: dict[str, Any] = {"relative_stderr": errors.stderr}
        if self.study.exact is not None:
            values |= {"relative_error": errors.error, "inside": errors.covered}
        return values

    def _errors(self, estimate: Estimate) -> DiagonalErrors:
        return diagonal_errors(estimate, self.study.exact)

    def _plot(self, estimate: Estimate) -> Figure:
        exact = self.study.exact
        caption = "Every entry with its 95 % interval."
        if exact is not None:
            caption += (
                " The entries are sorted by the exact diagonal, which is drawn as a line; about "
                "5 % of the intervals should miss it."
            )
        name, method = "diagonal", self.other_methods.get(estimate.method)
        if method is not None:
            name += f"-{estimate.method}"
        errors = self._errors(estimate)
        covered = errors.covered
        seen = "." if covered is None else f"; {percent(covered)} contain the line."
        return self.figure(
            name,
            "The diagonal, by " + (method or "Hutchinson's estimator"),
            caption,
            f"{estimate.value.shape[0]:,} estimated entries with error bars; their standard "
            f"error is {percent(errors.stderr)} of the diagonal in the 2-norm{seen}",
            lambda ax: plotting.plot_diagonal(estimate, exact and exact.diagonal, ax=ax),
        )


def diagonal_errors(estimate: Estimate, exact: ExactAnswers | None) -> DiagonalErrors:
    """The standard error of an estimated diagonal, and the actual error if it is known."""
    value, half = to_host(estimate.value), to_host(estimate.half_width())
    norm = float(np.linalg.norm(value)) or 1.0
    stderr = float(np.linalg.norm(to_host(estimate.stderr))) / norm
    if exact is None:
        return DiagonalErrors(estimate.num_probes, stderr, None, None)
    gap = np.abs(value - exact.diagonal)
    error = float(np.linalg.norm(gap)) / (float(np.linalg.norm(exact.diagonal)) or 1.0)
    # An exact entry has an interval of width 0, and may differ by rounding.
    covered = float(np.mean(gap <= half + exact.rounding))
    return DiagonalErrors(estimate.num_probes, stderr, error, covered)


@final
class _ErrorRecorder:
    """A callback that records the errors each time the number of probes has doubled."""

    def __init__(self, exact: ExactAnswers | None) -> None:
        self._exact = exact
        self._next = _BLOCK
        self.errors: list[DiagonalErrors] = []

    def __call__(self, estimate: Estimate) -> None:
        if estimate.num_probes >= self._next:
            self.errors.append(diagonal_errors(estimate, self._exact))
            self._next = 2 * estimate.num_probes
