"""A report as a folder: report.html, figures, results.json, and the saved results."""

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
from matfree.cli.report.images import png_image, svg_image


def prepare_folder(path: str) -> Path:
    """Create the folder and check that it is writable, before anything is computed.

    Raises
    ------
    CommandError
        The folder cannot be created or written to, or matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise CommandError(
            "the figures of a report need matplotlib, which is not installed: "
            "pip install matplotlib"
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


def write_report(report: Report, folder: Path) -> Path:
    """Write the page, the figures, the numbers and the results; return the path of the page."""
    images: dict[str, str] = {}
    for figure in _all_figures(report):
        images[figure.name] = svg_image(figure)
        (folder / f"{figure.name}.png").write_bytes(png_image(figure))
    for chapter in report.chapters:
        for section in chapter.sections:
            for name, result in section.results.items():
                result.save(folder / f"{name}.npz")
    (folder / "results.json").write_text(as_json(report), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(page.render(report, images), encoding="utf-8")
    return path


def as_json(report: Report) -> str:
    """The numbers of a report; NaN and infinity, which JSON does not have, become null.

    ``results[chapter][section]`` contains the ``values`` of a section and its time in seconds.
    """
    content = {
        "matfree": matfree.__version__,
        "title": report.title,
        "command": report.command,
        "seed": report.seed,
        "seconds": report.seconds,
        "environment": report.environment,
        "notes": report.notes,
        "results": {chapter.key: _chapter_values(chapter) for chapter in report.chapters},
    }
    return json.dumps(_json_value(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _chapter_values(chapter: Chapter) -> dict[str, Any]:
    sections = {
        section.key: {**section.values, "seconds": section.seconds} for section in chapter.sections
    }
    return {"facts": dict(chapter.facts), **sections}


def _all_figures(report: Report) -> list[Figure]:
    return [
        figure
        for chapter in report.chapters
        for section in chapter.sections
        for figure in section.figures
    ]


def _json_value(value: Any) -> Any:
    """The value in terms of the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, complex):
        return {"real": _json_value(value.real), "imag": _json_value(value.imag)}
    if hasattr(value, "item"):
        return _json_value(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
