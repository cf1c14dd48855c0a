"""How numbers look in tables, in the terminal and on the page alike."""

from __future__ import annotations

import math
from typing import Any

from matfree.cli.report.document import Cell, Column, Table


def number(x: Any, digits: int = 6) -> str:
    """A number with so many significant digits; a complex one as real and imaginary part."""
    if isinstance(x, complex):
        return f"{x.real:.{digits}g}{x.imag:+.{digits}g}i"
    return f"{x:.{digits}g}"


def interval(low: float, high: float, digits: int = 6) -> str:
    """[low, high]."""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def percent(fraction: float) -> str:
    """A fraction as a percentage of two digits."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def cell(value: Cell, digits: int = 6) -> str:
    """What a reader sees of a cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float | complex):
        return number(value, digits)
    return str(value)


def rendered(table: Table) -> list[list[str]]:
    """All cells of a table as text, row by row."""
    return [
        [cell(value, column.digits) for value, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]


def is_numeric(table: Table, index: int) -> bool:
    """Whether a column holds numbers, which stand flush right."""
    return not any(isinstance(row[index], str) for row in table.rows)


def summary(findings: tuple[Any, ...], caption: str) -> Table:
    """The findings of a chapter as one table; without an exact value anywhere, no such column."""
    known = any(finding.exact is not None for finding in findings)
    titles = [
        "quantity",
        "estimate",
        "interval",
        *(["exact", "inside"] if known else []),
        "products",
    ]
    rows = []
    for finding in findings:
        exact = [finding.exact, finding.inside] if known else []
        rows.append(
            (finding.quantity, finding.estimate, finding.interval, *exact, finding.num_matvecs)
        )
    return Table(caption, tuple(Column(title) for title in titles), tuple(rows))
