"""Figures as PNG files on white, and as SVG whose ink is the colour of the text around it."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from matfree.cli.report.document import Figure

WIDTH = 5.6
"""In inches; small enough for the text to be readable at the width of a phone."""

_INK, _PAPER = "#1b1f24", "#ffffff"
_DOTS_PER_INCH = 160
_MOST_MARKERS = 2000  # more of them are drawn as pixels, because an SVG lists every one

_PREFACE = re.compile(r"^.*?(?=<svg)", re.DOTALL)  # the XML declaration and the document type
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_NAMES = re.compile(r'<g id="[a-z]+_?\d*">|<g id="(?:axes|matplotlib\.axis|legend)_\d+">')
_DECIMALS = re.compile(r"(\d\.\d)\d+")  # of coordinates in points
_REPEATED = re.compile(r"(L [-\d.]+ [-\d.]+ \n)\1+")  # points of a line
_SIZE = re.compile(r' width="[\d.]+pt"| height="[\d.]+pt"')


def png_image(figure: Figure) -> bytes:
    """Draw a figure without changing the global state of matplotlib."""
    # Without the version of matplotlib in the metadata, equal figures are equal files.
    return _drawn(figure, format="png", metadata={"Software": None})


def svg_image(figure: Figure) -> str:
    """The same as an ``svg`` element, for the inside of an HTML page of any colour."""
    style = {"svg.fonttype": "none", "svg.hashsalt": figure.name}
    text = _drawn(figure, style, format="svg", transparent=True, metadata={"Date": None}).decode()
    for pattern in (_PREFACE, _METADATA):
        text = pattern.sub("", text)
    text = _REPEATED.sub(r"\1", _DECIMALS.sub(r"\1", _NAMES.sub("<g>", text)))
    head, rest = text.split(">", 1)
    text = f"{_SIZE.sub('', head)}>{rest}"
    return text.replace(_INK, "currentColor").replace(_PAPER, f"var(--paper, {_PAPER})")


def _drawn(figure: Figure, style: dict[str, Any] | None = None, **options: Any) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    ours: dict[Any, Any] = {
        "axes.edgecolor": _INK,
        "axes.facecolor": _PAPER,
        "axes.labelcolor": _INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": _PAPER,
        "font.size": 10,
        "lines.linewidth": 1.6,
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
    ours.update(style or {})
    with matplotlib.rc_context(ours):
        canvas = Canvas(figsize=(WIDTH, figure.height), layout="constrained")
        ax = canvas.subplots()
        figure.draw(ax)
        for line in ax.lines:
            line.set_rasterized(np.size(line.get_xdata()) > _MOST_MARKERS)
        for collection in ax.collections:
            collection.set_rasterized(len(collection.get_paths()) > _MOST_MARKERS)
        stream = io.BytesIO()
        canvas.savefig(stream, dpi=_DOTS_PER_INCH, **options)
    return stream.getvalue()
