"""Functions that all plots use: Axes to draw on, colours, labels and legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""Those of Okabe and Ito's eight colours that have a contrast of 3:1 with white and black."""


def axes_or_new(ax: Axes | None, projection: str | None = None) -> Axes:
    """The given Axes, or those of a new figure; ImportError without matplotlib."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as cause:
        raise ImportError(
            "plots need matplotlib, which is not installed: pip install matplotlib."
        ) from cause
    return pyplot.subplots(layout="constrained", subplot_kw={"projection": projection})[1]


def text_colour(ax: Axes) -> Any:
    """The text colour of the style in use: black on white, or white on black."""
    return ax.xaxis.label.get_color()


def draw_exact(ax: Axes, *curve: Any, linestyle: str = "-") -> None:
    """Draw the exact answer as a thin line in the colour of the text."""
    ax.plot(*curve, color=text_colour(ax), linewidth=1, linestyle=linestyle, label="exact")


def legend(ax: Axes) -> None:
    """Add a legend through which the curves remain visible."""
    ax.legend(fontsize="small", framealpha=0.8, edgecolor="none")


def labelled(ax: Axes, x: str, y: str) -> Axes:
    """Add axis labels and a legend, and return the Axes."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    legend(ax)
    return ax
