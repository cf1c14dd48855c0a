"""Pictures of losses along directions and of curvature over training.

As in :mod:`matfree.plotting`: drawn on the Axes given or on new ones, which are returned, and
nothing is shown, saved or configured. Colour maps are matplotlib's perceptually uniform ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import numpy as np

from matfree.plotting.axes import BLUE, GREEN, PURPLE, VERMILLION, axes_or_new, legend, text_colour
from matfree.protocol import HostArray
from matfree.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
_DASHES = ("-", "--", ":", "-.")
COLOUR_MAP = "cividis"
_LEVELS = 15


def plot_curves(landscape: LossLandscape, *, ax: Axes | None = None) -> Axes:
    """Draw a loss along directions, one curve each, with the network itself marked.

    Parameters
    ----------
    landscape : LossLandscape along lines
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    (x,) = landscape.coordinates
    for j, (name, values) in enumerate(zip(landscape.names, landscape.values, strict=True)):
        ax.plot(x, _finite(values), label=name, **curve_style(j))
    if x[0] <= 0 <= x[-1]:
        ax.plot(0.0, landscape.loss, "o", color=text_colour(ax), markersize=5, label="the network")
    ax.set_xlabel("multiple of the direction")
    ax.set_ylabel("loss")
    legend(ax)
    return ax


def plot_contours(landscape: LossLandscape, *, ax: Axes | None = None) -> Axes:
    """Draw a loss over a plane as filled contours, with the network itself marked.

    Levels are spaced as squares, min + (max - min) t^2, so that a quadratic bowl has evenly
    spaced rings.

    Parameters
    ----------
    landscape : LossLandscape over a plane
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x, y = landscape.coordinates
    values = _finite(landscape.values).T  # matplotlib's rows go up
    low, high = float(values.min()), float(values.max())
    rise = max(high - low, 1e-12 * max(abs(low), abs(high)), np.finfo(float).tiny)
    levels = low + rise * np.linspace(0, 1, _LEVELS) ** 2
    shades = _normed(levels)
    filled = ax.contourf(x, y, values, levels=levels, cmap=COLOUR_MAP, norm=shades)
    ax.contour(x, y, values, levels=levels[1:-1], colors="white", linewidths=0.5, alpha=0.6)
    bar = ax.figure.colorbar(filled, ax=ax, label="loss", ticks=levels[:: _LEVELS // 7])
    bar.ax.yaxis.set_major_formatter("{x:.3g}")
    if x[0] <= 0 <= x[-1]:
        ax.plot(0.0, 0.0, "o", color="white", markeredgecolor="black", markersize=6)
    ax.set_xlabel(f"multiple of {landscape.names[0]}")
    ax.set_ylabel(f"multiple of {landscape.names[1]}")
    return ax


def plot_surface(landscape: LossLandscape, *, ax: Any = None) -> Any:
    """Draw a loss over a plane as a surface in three dimensions.

    Parameters
    ----------
    landscape : LossLandscape over a plane
    ax : matplotlib Axes3D, optional

    Returns
    -------
    The Axes drawn on.

    Raises
    ------
    ValueError
        The Axes have two dimensions.
    """
    ax = axes_or_new(ax, projection="3d")
    if not hasattr(ax, "plot_surface"):
        raise ValueError(
            "a surface needs Axes with three dimensions: "
            'make them by pyplot.subplots(subplot_kw={"projection": "3d"}), or leave ax out.'
        )
    x, y = np.meshgrid(*landscape.coordinates, indexing="ij")
    z = _finite(landscape.values).filled(np.nan)
    ax.plot_surface(x, y, z, cmap=COLOUR_MAP, rcount=z.shape[0], ccount=z.shape[1], linewidth=0)
    ax.locator_params(nbins=5)  # slanted axes are short, and their numbers lie side by side
    ax.set_xlabel(f"multiple of {landscape.names[0]}", labelpad=8)
    ax.set_ylabel(f"multiple of {landscape.names[1]}", labelpad=8)
    ax.set_zlabel("loss")
    return ax


def curve_style(j: int) -> dict[str, Any]:
    """Colour and dashes of the j-th of several curves."""
    count = len(_COLOURS)
    return {"color": _COLOURS[j % count], "linestyle": _DASHES[j // count % len(_DASHES)]}


def _finite(values: HostArray) -> Any:
    """Values with gaps where the loss is infinite or NaN."""
    return np.ma.masked_invalid(values)


def _normed(levels: HostArray) -> Any:
    from matplotlib.colors import BoundaryNorm  # only where something is drawn

    return BoundaryNorm(levels, 256)


def positions(ax: Axes, labels: Sequence[Any]) -> HostArray:
    """Where checkpoints are on the axis: at their labels if these are numbers."""
    ax.set_xlabel("checkpoint")
    if all(isinstance(label, int | float) for label in labels):
        return np.asarray(labels, dtype=np.float64)
    x = np.arange(len(labels), dtype=np.float64)
    ax.set_xticks(x, list(map(str, labels)))
    return x


Picture: TypeAlias = Literal["curve", "contour", "surface"]


@final
@dataclass(frozen=True, eq=False)
class LossLandscape(Record):
    """A loss along some lines, or over a plane, through a network's parameters.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import loss_landscape
    >>> data = torch.randn(5, 2), torch.randn(5, 1)
    >>> plane = loss_landscape(
    ...     torch.nn.Linear(2, 1), torch.nn.MSELoss(), data, ["random", "random"], points=3, seed=0
    ... )
    >>> plane.is_surface, plane.values.shape, plane.num_evaluations
    (True, (3, 3), 10)
    >>> ax = plane.plot(kind="contour")
    """

    coordinates: tuple[HostArray, ...]
    """One array for lines, two for a plane: the multiples of the directions, float64."""
    values: HostArray
    """The loss, float64: (lines, points); or (points, points), entry [i, j] at the i-th
    multiple of the first direction and the j-th of the second."""
    names: tuple[str, ...]
    """Of the directions."""
    lengths: tuple[float, ...]
    """The directions' 2-norms: how far the coordinate 1 is."""
    loss: float
    """At the network itself."""
    num_evaluations: int
    """Points at which the loss was evaluated, each over all of the data."""
    filter_normalized: bool
    """Whether the directions' filters were given the length of the network's own."""
    seed: int
    """The seed that repeats random directions."""

    @property
    def is_surface(self) -> bool:
        """Whether it is over a plane, rather than along lines."""
        return len(self.coordinates) == 2

    def plot(self, ax: Any = None, kind: Picture | None = None) -> Any:
        """Draw it on matplotlib Axes and return them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            A new figure by default. "surface" needs Axes with projection="3d".
        kind : {"curve", "contour", "surface"}, optional
            "curve" for lines; "contour" (the default) or "surface" for a plane.

        Raises
        ------
        ValueError
            The kind does not fit the landscape, or the Axes the kind.
        """
        kind = kind or ("contour" if self.is_surface else "curve")
        if kind not in ("curve", "contour", "surface") or (kind == "curve") == self.is_surface:
            fitting = "'contour' or 'surface'" if self.is_surface else "'curve'"
            raise ValueError(f"kind must be {fitting} for this landscape: got {kind!r}.")
        draw = {
            "curve": plot_curves,
            "contour": plot_contours,
            "surface": plot_surface,
        }
        return draw[kind](self, ax=ax)

    def _rows(self) -> list[tuple[str, str]]:
        finite = self.values[np.isfinite(self.values)]
        ends = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "nowhere finite"
        x = self.coordinates[0]
        size = " x ".join(str(axis.size) for axis in self.coordinates)
        what = "plane of" if self.is_surface else "along"
        return [
            ("loss", f"{self.loss:.8g} at the network, {ends} on the way"),
            ("directions", f"{what} {', '.join(self.names)}"),
            ("lengths", ", ".join(f"{length:.4g}" for length in self.lengths)),
            ("points", f"{size}, from {x[0]:g} to {x[-1]:g}"),
            ("filters", "normalised" if self.filter_normalized else "as they are"),
            ("seed", str(self.seed)),
        ]
