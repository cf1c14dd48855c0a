"""The text of table cells, for the terminal and the HTML page."""

from __future__ import annotations

import math
from typing import Any

from matfree.cli.report.document import Cell, Column, Table


def number(x: Any, digits: int = 6) -> str:
    """A number with the given significant digits; a complex one as real and imaginary part."""
    if isinstance(x, complex):
        return f"{x.real:.{digits}g}{x.imag:+.{digits}g}i"
    return f"{x:.{digits}g}"


def interval_text(low: float, high: float, digits: int = 6) -> str:
    """An interval as "[low, high]"."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def percent(fraction: float) -> str:
    """A fraction as a percentage with two digits."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def cell_text(value: Cell, digits: int = 6) -> str:
    """The text of a cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float | complex):
        return number(value, digits)
    return str(value)


def rendered(table: Table) -> list[list[str]]:
    """The text of all cells of a table, row by row."""
    return [
        [cell_text(value, column.digits) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]


def is_numeric(table: Table, index: int) -> bool:
    """Whether a column contains numbers only, which are aligned to the right."""
    return not any(isinstance(row[index], str) for row in table.rows)


def summary(findings: tuple[Any, ...], caption: str) -> Table:
    """The findings of a chapter as a table; the exact columns are omitted if they are empty."""
    known = any(finding.exact is not None for finding in findings)
    titles = [
        "quantity",
        "estimate",
        "interval",
        *(["exact", "inside"] if known else []),
        "matvecs",
    ]
    rows = []
    for finding in findings:
        exact = [finding.exact, finding.inside] if known else []
        rows.append(
            (finding.quantity, finding.estimate, finding.interval, *exact, finding.num_matvecs)
        )
    return Table(caption, tuple(Column(title) for title in titles), tuple(rows))
