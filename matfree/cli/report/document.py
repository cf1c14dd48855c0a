"""What a report is made of: chapters, sections, tables, figures, findings.

These know nothing of where they come from or where they go. Whoever has something to
report makes sections and hands them to a :class:`Notebook`; renderers (``terminal``,
``page``, ``folder``) read the same records.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, final

Cell: TypeAlias = str | int | float | complex | bool | None
"""What stands in a table; a float is printed with its column's digits, None as a dash."""


class Saveable(Protocol):
    """A result that can write itself to a file, as every matfree result can."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to ``path`` and return the path written."""


@final
@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    digits: int = 6
    """Significant digits of its floats."""


@final
@dataclass(frozen=True)
class Table:
    """Rows under columns, with a caption that says what to see in them."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@final
@dataclass(frozen=True)
class Figure:
    """A picture, drawn when a renderer wants it."""

    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    draw: Callable[[Any], Any]
    """Draws on the matplotlib Axes it is given."""
    height: float = 3.6
    """Inches."""


@final
@dataclass(frozen=True)
class Finding:
    """One line of the summary: what was estimated, how surely, and what is true."""

    quantity: str
    estimate: Cell
    interval: str
    exact: Cell = None
    """None where nobody knows."""
    inside: Cell = None
    """Whether the interval holds the exact value; None where nobody knows."""
    num_matvecs: int | None = None


@final
@dataclass(frozen=True)
class Section:
    """One computation: what was done and why, in words, code, tables and pictures."""

    key: str
    """Its name in results.json."""
    title: str
    text: tuple[str, ...]
    """Paragraphs; `code` between backticks."""
    code: str = ""
    """Python that repeats it."""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    findings: tuple[Finding, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for results.json: plain values, lists and mappings of them."""
    results: Mapping[str, Saveable] = field(default_factory=dict)
    """Results worth keeping, by the name of their file."""
    seconds: float | None = None


@final
@dataclass(frozen=True)
class Chapter:
    """Sections about one operator."""

    key: str
    title: str
    text: tuple[str, ...]
    code: str = ""
    """Python that makes the operator which the sections' code speaks of."""
    facts: tuple[tuple[str, str], ...] = ()
    """What it is about, as (name, text)."""
    sections: tuple[Section, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all sections."""
        return tuple(finding for section in self.sections for finding in section.findings)


@final
@dataclass(frozen=True)
class Report:
    """Everything one command had to say, and what it takes to have it say it again."""

    title: str
    command: str
    """The command line that repeats it."""
    seed: int
    environment: Mapping[str, str]
    """Versions and machine, by name."""
    chapters: tuple[Chapter, ...]
    notes: tuple[str, ...] = ()
    """What is missing, and why."""
    seconds: float = 0.0


class Listener(Protocol):
    """Somebody who wants to know of chapters and sections as they come."""

    def chapter(self, chapter: Chapter) -> None:
        """A chapter begins; it has no sections yet."""

    def section(self, section: Section) -> None:
        """A section of the chapter is done."""

    def note(self, text: str) -> None:
        """Something to know is said in one line."""


@final
class Notebook:
    """Collects a report while it comes about, and tells a listener.

    Parameters
    ----------
    listener : Listener, optional
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self._chapters: list[Chapter] = []
        self._notes: list[str] = []

    @property
    def chapters(self) -> tuple[Chapter, ...]:
        """What was collected so far."""
        return tuple(self._chapters)

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes so far."""
        return tuple(self._notes)

    def open(self, chapter: Chapter) -> None:
        """Begin a chapter."""
        self._chapters.append(chapter)
        if self._listener is not None:
            self._listener.chapter(chapter)

    def add(self, section: Section) -> None:
        """Put a section at the end of the chapter that was opened last."""
        chapter = self._chapters[-1]
        self._chapters[-1] = dataclasses.replace(chapter, sections=(*chapter.sections, section))
        if self._listener is not None:
            self._listener.section(section)

    def note(self, text: str) -> None:
        """Say something that is about the report as a whole."""
        self._notes.append(text)
        if self._listener is not None:
            self._listener.note(text)
