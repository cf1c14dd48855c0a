"""Figures as PNG images, on white for print and files, on black for dark screens."""

from __future__ import annotations

import io
from typing import Any, Literal, TypeAlias

from matfree.cli.report.document import Figure

Theme: TypeAlias = Literal["light", "dark"]

WIDTH = 5.6
"""In inches; small enough for the text to be readable at the width of a phone."""

_DOTS_PER_INCH = 160
_INK_AND_PAPER: dict[Theme, tuple[str, str]] = {
    "light": ("#1b1f24", "#ffffff"),
    "dark": ("#dde3ea", "#15191e"),
}


def png_image(figure: Figure, theme: Theme = "light") -> bytes:
    """Draw a figure without changing the global state of matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    ink, paper = _INK_AND_PAPER[theme]
    style: dict[Any, Any] = {
        "axes.edgecolor": ink,
        "axes.facecolor": paper,
        "axes.labelcolor": ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": paper,
        "font.size": 10,
        "lines.linewidth": 1.6,
        "text.color": ink,
        "xtick.color": ink,
        "ytick.color": ink,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(WIDTH, figure.height), layout="constrained")
        figure.draw(canvas.subplots())
        stream = io.BytesIO()
        # Without the version of matplotlib in the metadata, equal figures are equal files.
        canvas.savefig(stream, dpi=_DOTS_PER_INCH, format="png", metadata={"Software": None})
    return stream.getvalue()
