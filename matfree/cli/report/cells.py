"""The text of table cells, for the terminal and the HTML page."""

from __future__ import annotations

import math
import re
from typing import Any

from matfree.cli.report.document import Cell, Column, Measured, Table
from matfree.digits import number, supported

MISSED = (
    "NO: the interval does not contain the exact value. One 95 % interval in twenty is expected to "
    "miss it."
)
UNCONVERGED = "NO: the tolerance was not reached. The error bound holds nevertheless."


def percent(fraction: float) -> str:
    """A fraction as a percentage with two digits."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.1 else f"{100 * fraction:.2g} %"


def cell_text(value: Cell, digits: int = 6) -> str:
    """The text of a cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, Measured):
        return supported(value.value, value.half_width)
    if isinstance(value, float | complex):
        return number(value, digits)
    return str(value)


def rendered(table: Table) -> list[list[str]]:
    """The text of all cells of a table, row by row.

    The decimal points of a column are at the same place: numbers are padded with spaces on the
    right.
    """
    columns = []
    for j, column in enumerate(table.columns):
        values = [row[j] for row in table.rows]
        texts = [cell_text(value, column.digits) for value in values]
        tails = [_tail(text) if _is_number(x) else 0 for x, text in zip(values, texts, strict=True)]
        longest = max(tails, default=0)
        columns.append(
            [
                text + " " * (longest - tail if _is_number(value) else 0)
                for value, text, tail in zip(values, texts, tails, strict=True)
            ]
        )
    return [list(row) for row in zip(*columns, strict=True)]


def _tail(text: str) -> int:
    """The number of characters from the decimal point on."""
    digits = re.match(r"-?\d*", text)
    return len(text) - (digits.end() if digits else 0)


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float | complex | Measured) and not isinstance(value, bool)


def is_numeric(table: Table, index: int) -> bool:
    """Whether a column contains numbers, which are aligned to the right."""
    return any(_is_number(row[index]) for row in table.rows)


def remarks(table: Table) -> list[str]:
    """The sentences that explain the cells with a "NO"."""
    return [
        column.remark
        for j, column in enumerate(table.columns)
        if column.remark and any(row[j] is False for row in table.rows)
    ]


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
    columns = (Column(title, remark=MISSED if title == "inside" else "") for title in titles)
    return Table(caption, tuple(columns), tuple(rows))
