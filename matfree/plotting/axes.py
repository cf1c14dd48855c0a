"""What every picture has in common: Axes to draw on, colours, a legend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
"""Of Okabe and Ito's eight colours, those that contrast 3:1 with white and with black."""


def axes_or_new(ax: Axes | None, projection: str | None = None) -> Axes:
    """The Axes given, or those of a new figure; ImportError without matplotlib."""
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as cause:
        raise ImportError(
            "plots need matplotlib; install it with pip install 'matfree-nla[plot]'."
        ) from cause
    return pyplot.subplots(layout="constrained", subplot_kw={"projection": projection})[1]


def ink(ax: Axes) -> Any:
    """The style's colour for text: black on white, white on black."""
    return ax.xaxis.label.get_color()


def legend(ax: Axes) -> None:
    """A legend that leaves what lies under it readable."""
    ax.legend(fontsize="small", framealpha=0.8, edgecolor="none")
