"""The report as it is printed to the terminal during the run."""

from __future__ import annotations

import shutil
import textwrap
from typing import TextIO, final

from matfree.cli.report import cells
from matfree.cli.report.document import Chapter, Section, Table

_MAX_WIDTH = 88


@final
class Terminal:
    """Prints chapters and sections as they are added.

    Parameters
    ----------
    stream : text stream
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._width = min(_MAX_WIDTH, shutil.get_terminal_size((_MAX_WIDTH, 24)).columns)

    def chapter(self, chapter: Chapter) -> None:
        """Print the heading of a chapter, its text, and the properties of the operator."""
        self._line()
        self._line(chapter.title.upper())
        self._line("=" * len(chapter.title))
        for paragraph in chapter.text:
            self.note(paragraph)
        width = max((len(name) for name, _ in chapter.facts), default=0)
        for name, text in chapter.facts:
            self._line(f"  {name:<{width}}  {text}")

    def section(self, section: Section) -> None:
        """Print a section: text, code and tables."""
        self._line()
        self._line(section.title)
        self._line("-" * len(section.title))
        for paragraph in section.text:
            self.note(paragraph)
        for line in section.code.splitlines():
            self._line(f"  >>> {line}")
        for table in section.tables:
            self.table(table)

    def note(self, text: str) -> None:
        """Print a paragraph."""
        self._line(textwrap.fill(text, self._width, break_on_hyphens=False))

    def table(self, table: Table) -> None:
        """Print the caption and the rows of a table."""
        self._line()
        self.note(table.caption)
        titles, rows = [column.title for column in table.columns], cells.rendered(table)
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        numeric = [cells.is_numeric(table, j) for j in range(len(titles))]
        for row in (titles, ["-" * width for width in widths], *rows):
            aligned = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(row, widths, numeric, strict=True)
            ]
            self._line("  " + "  ".join(aligned).rstrip())
        for remark in cells.remarks(table):
            self.note(remark)

    def _line(self, text: str = "") -> None:
        print(text, file=self._stream, flush=True)
