"""Base classes of all sections, and of those on the trace and the diagonal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from matfree.cli.report.document import Cell, Column, Figure, Finding, Saveable, Section, Table
from matfree.cli.study import Study
from matfree.results import Estimate


class StudySection(ABC):
    """One algorithm, run on the operator of a study, and the report of its result.

    A subclass runs the algorithm in its constructor; the methods describe the result.
    """

    key: ClassVar[str]
    """The name of the section in results.json."""
    title: ClassVar[str]

    def __init__(self, study: Study) -> None:
        self.study = study

    @abstractmethod
    def text(self) -> tuple[str, ...]:
        """Paragraphs about the method, and about results that did not converge."""

    @abstractmethod
    def code(self) -> str:
        """A line of Python that repeats the computation."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """The convergence and the results."""

    @abstractmethod
    def figures(self) -> tuple[Figure, ...]:
        """Plots of the results."""

    @abstractmethod
    def findings(self) -> tuple[Finding, ...]:
        """The rows of the summary."""

    @abstractmethod
    def values(self) -> Mapping[str, Any]:
        """The numbers for results.json."""

    @abstractmethod
    def results(self) -> Mapping[str, Saveable]:
        """The results to save, by name."""

    def build(self) -> Section:
        """The section as a record."""
        return Section(
            key=self.key,
            title=self.title,
            text=self.text(),
            code=self.code(),
            tables=self.tables(),
            figures=self.figures(),
            findings=self.findings(),
            values=self.values(),
            results={self.file_name(name): result for name, result in self.results().items()},
        )

    def file_name(self, name: str) -> str:
        """The name of a file of this study, without its ending."""
        return f"{self.study.file_prefix}-{name}"

    def figure(
        self, name: str, title: str, caption: str, alternative: str, draw: Callable[[Any], Any]
    ) -> Figure:
        """A figure in a file of this study."""
        return Figure(self.file_name(name), title, caption, alternative, draw)


class SampledSection(StudySection):
    """An estimate by Hutchinson's estimator, and by other methods with as many matvecs.

    Parameters
    ----------
    study : Study
    **options : further arguments of the first estimate
    """

    quantity: ClassVar[str]
    """The quantity, which is also the name of the function of matfree."""
    other_methods: ClassVar[dict[str, str]]
    """The other methods, with the names that the report gives them."""
    columns: ClassVar[tuple[Column, ...]]
    """The columns of the comparison of methods, after the method and its cost."""
    exact_columns: ClassVar[tuple[Column, ...]]
    """Further columns of tables if the exact answer is known."""

    def __init__(self, study: Study, **options: Any) -> None:
        super().__init__(study)
        self.arguments = study.sampling()
        self.estimate = self.run(**options, **self.arguments)
        self.others = [
            self.run(**arguments)
            for arguments in study.comparisons(
                *self.other_methods, num_matvecs=self.estimate.num_matvecs
            )
        ]

    @abstractmethod
    def run(self, **arguments: Any) -> Estimate:
        """Estimate the quantity."""

    @abstractmethod
    def method_text(self) -> str:
        """The paragraph about Hutchinson's estimator."""

    @abstractmethod
    def convergence(self) -> Table:
        """The first estimate by number of probes."""

    @abstractmethod
    def cells(self, estimate: Estimate) -> Sequence[Cell]:
        """A row of the comparison, for ``columns``."""

    @abstractmethod
    def exact_cells(self, estimate: Estimate) -> Sequence[Cell]:
        """The rest of the row, for ``exact_columns``."""

    @abstractmethod
    def finding(self, estimate: Estimate) -> Finding:
        """The row of the summary for one estimate."""

    @abstractmethod
    def own_values(self, estimate: Estimate) -> dict[str, Any]:
        """The numbers of one estimate other than those about its run."""

    def text(self) -> tuple[str, ...]:
        """The method, and whether it converged."""
        if not self.estimate.num_probes:
            return (f"The {self.quantity} was computed exactly: {self.estimate.reason}.",)
        if self.estimate.converged:
            return (self.method_text(),)
        shortfall = (
            f"Not converged: {self.estimate.reason}. The intervals are valid, but wider than "
            "requested; raise --max-matvecs or --rtol."
        )
        return (self.method_text(), shortfall)

    def code(self) -> str:
        """The call of the function of matfree."""
        return self.study.call(self.quantity, **self.arguments)

    def tables(self) -> tuple[Table, ...]:
        """The convergence of the first estimate, and the comparison of the methods."""
        convergence = (self.convergence(),) if self.estimate.num_probes else ()
        comparison = (self._comparison(),) if self.others else ()
        return (*convergence, *comparison)

    def findings(self) -> tuple[Finding, ...]:
        """One row for each method."""
        return tuple(map(self.finding, (self.estimate, *self.others)))

    def values(self) -> dict[str, Any]:
        """The numbers of the first estimate, and those of the others by method."""
        compared = {other.method: self._values(other) for other in self.others}
        return self._values(self.estimate) | {"compared": compared}

    def results(self) -> Mapping[str, Saveable]:
        """The first estimate."""
        return {self.quantity: self.estimate}

    def quantity_by(self, estimate: Estimate) -> str:
        """The quantity, with the method if it is not Hutchinson's estimator."""
        name = self.other_methods.get(estimate.method)
        return self.quantity if name is None else f"{self.quantity}, by {name}"

    def table(self, caption: str, columns: tuple[Column, ...], rows: Any) -> Table:
        """A table with ``exact_columns`` at the right if the exact answer is known."""
        known = self.exact_columns if self.study.exact is not None else ()
        return Table(caption, (*columns, *known), tuple(map(tuple, rows)))

    def _comparison(self) -> Table:
        known = self.study.exact is not None
        return self.table(
            "Methods that first find the largest eigenvalues and sample only the remainder, with "
            "the same number of matvecs:",
            (Column("method"), Column("matvecs"), *self.columns),
            [
                (e.method, e.num_matvecs, *self.cells(e), *(self.exact_cells(e) if known else ()))
                for e in (self.estimate, *self.others)
            ],
        )

    def _values(self, estimate: Estimate) -> dict[str, Any]:
        return self.own_values(estimate) | {
            "method": estimate.method,
            "num_probes": estimate.num_probes,
            "num_matvecs": estimate.num_matvecs,
            "converged": estimate.converged,
            "reason": estimate.reason,
            "seed": estimate.seed,
        }
