"""A report as a folder: report.html, its pictures, results.json, and the results themselves."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matfree
from matfree.cli.failure import CommandError
from matfree.cli.report import page
from matfree.cli.report.document import Chapter, Figure, Report
from matfree.cli.report.images import png


def prepare(path: str) -> Path:
    """Make the folder, and see that it can be written to, before anything is computed.

    Raises
    ------
    CommandError
        It cannot be made or written to, or there is no matplotlib to draw with.
    """
    if find_spec("matplotlib") is None:
        raise CommandError(
            "pictures need matplotlib, which is not installed: pip install 'matfree-nla[plot]'"
        )
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise CommandError(
            f"cannot write to the folder {folder}: {cause.strerror}; choose another with --out"
        ) from cause
    return folder


def write(report: Report, folder: Path) -> Path:
    """Write everything, and return the path of the page."""
    pictures: dict[str, dict[str, bytes]] = {}
    for figure in _figures(report):
        pictures[figure.name] = {"light": png(figure, "light"), "dark": png(figure, "dark")}
        (folder / f"{figure.name}.png").write_bytes(pictures[figure.name]["light"])
    for chapter in report.chapters:
        for section in chapter.sections:
            for name, result in section.results.items():
                result.save(folder / f"{name}.npz")
    (folder / "results.json").write_text(as_json(report), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page.render(report, pictures), encoding="utf-8")
    return path


def as_json(report: Report) -> str:
    """The numbers of a report; NaN and infinity, which JSON lacks, become null.

    ``results[chapter][section]`` holds what a section's ``values`` hold, and its seconds.
    """
    content = {
        "matfree": matfree.__version__,
        "title": report.title,
        "command": report.command,
        "seed": report.seed,
        "seconds": report.seconds,
        "environment": report.environment,
        "notes": report.notes,
        "results": {chapter.key: _chapter(chapter) for chapter in report.chapters},
    }
    return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _chapter(chapter: Chapter) -> dict[str, Any]:
    sections = {
        section.key: {**section.values, "seconds": section.seconds} for section in chapter.sections
    }
    return {"facts": dict(chapter.facts), **sections}


def _figures(report: Report) -> list[Figure]:
    return [
        figure
        for chapter in report.chapters
        for section in chapter.sections
        for figure in section.figures
    ]


def _plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, complex):
        return {"real": _plain(value.real), "imag": _plain(value.imag)}
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
