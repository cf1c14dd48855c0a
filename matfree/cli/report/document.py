"""The records that a report consists of: chapters, sections, tables, figures, findings.

The records depend neither on the commands that create them nor on the output format. A command
adds chapters and sections to a :class:`ReportBuilder`, and the renderers (``terminal``, ``page``,
``folder``) read the records.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final


@final
@dataclass(frozen=True)
class Measured:
    """A cell: an estimate, printed with the digits that the half-width of its interval supports."""

    value: float | complex
    half_width: float


Cell: TypeAlias = str | int | float | complex | bool | Measured | None
"""A cell of a table. A float is printed with the digits of its column, None as a dash."""


class Saveable(Protocol):
    """A result that can be saved to a file, like every result of matfree."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to ``path`` and return the path written."""


@final
@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    digits: int = 6
    """The number of significant digits of its floats."""
    remark: str = ""
    """A sentence that explains a "NO" in this column, printed below the table if there is one."""


@final
@dataclass(frozen=True)
class Table:
    """Rows and columns, with a caption."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@final
@dataclass(frozen=True)
class Figure:
    """A figure; it is drawn when a renderer calls ``draw``."""

    name: str
    """The name of its file, without the ending."""
    title: str
    caption: str
    alternative: str
    """What the figure shows, for those who do not see it."""
    draw: Callable[[Any], Any]
    """A function that draws on the given matplotlib Axes."""
    height: float = 3.6
    """In inches."""


@final
@dataclass(frozen=True)
class Finding:
    """One row of the summary: an estimate, its interval, and the exact value if it is known."""

    quantity: str
    estimate: Cell
    interval: str
    exact: Cell = None
    """The exact value; None if it is unknown."""
    inside: Cell = None
    """Whether the interval contains the exact value; None if that is unknown."""
    num_matvecs: int | None = None


@final
@dataclass(frozen=True)
class Section:
    """One computation, described by text, code, tables and figures."""

    key: str
    """Its name in results.json."""
    title: str
    text: tuple[str, ...]
    """Paragraphs; text between backticks is code."""
    code: str = ""
    """Python that repeats the computation."""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    findings: tuple[Finding, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers for results.json: plain values, and lists and mappings of them."""
    results: Mapping[str, Saveable] = field(default_factory=dict)
    """The results to save, by the name of their file."""
    seconds: float | None = None


@final
@dataclass(frozen=True)
class Chapter:
    """Sections about one operator."""

    key: str
    title: str
    text: tuple[str, ...]
    code: str = ""
    """Python that creates the operator to which the code of the sections refers."""
    facts: tuple[tuple[str, str], ...] = ()
    """Properties of the operator, as (name, text)."""
    sections: tuple[Section, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all sections."""
        return tuple(finding for section in self.sections for finding in section.findings)


@final
@dataclass(frozen=True)
class Report:
    """The complete report of one command, with the information needed to repeat it."""

    title: str
    command: str
    """The command line that repeats the run."""
    seed: int
    environment: Mapping[str, str]
    """Versions of the software and the type of machine, by name."""
    chapters: tuple[Chapter, ...]
    notes: tuple[str, ...] = ()
    """Remarks about the whole report, for example on missing chapters."""
    seconds: float = 0.0


class ReportListener(Protocol):
    """An object that is notified of chapters and sections as they are added."""

    def chapter(self, chapter: Chapter) -> None:
        """A chapter was opened; it has no sections yet."""

    def section(self, section: Section) -> None:
        """A section was added to the chapter."""

    def note(self, text: str) -> None:
        """A note was added."""


@final
class ReportBuilder:
    """Collects the chapters of a report during a run, and notifies a listener.

    Parameters
    ----------
    listener : ReportListener, optional
    """

    def __init__(self, listener: ReportListener | None = None) -> None:
        self._listener = listener
        self._chapters: list[Chapter] = []
        self._notes: list[str] = []

    @property
    def chapters(self) -> tuple[Chapter, ...]:
        """The chapters so far."""
        return tuple(self._chapters)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes so far."""
        return tuple(self._notes)

    def add_chapter(self, chapter: Chapter) -> None:
        """Open a chapter; sections are added to it from now on."""
        self._chapters.append(chapter)
        if self._listener is not None:
            self._listener.chapter(chapter)

    def add_section(self, section: Section) -> None:
        """Add a section to the chapter that was opened last."""
        chapter = self._chapters[-1]
        self._chapters[-1] = dataclasses.replace(chapter, sections=(*chapter.sections, section))
        if self._listener is not None:
            self._listener.section(section)

    def add_note(self, text: str) -> None:
        """Add a remark about the whole report."""
        self._notes.append(text)
        if self._listener is not None:
            self._listener.note(text)
