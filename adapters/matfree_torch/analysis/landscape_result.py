"""The result of ``loss_landscape``, and its plots.

As in :mod:`matfree.plotting`, plots are drawn on the given Axes, or on new ones, and the Axes
are returned. Nothing is shown, saved or configured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import numpy as np

from matfree.plotting.axes import BLUE, GREEN, PURPLE, VERMILLION, axes_or_new, legend, text_colour
from matfree.protocol import HostArray
from matfree.results import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR_MAP = "cividis"
"""The colour map of surfaces and images, one of matplotlib's perceptually uniform ones."""

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
_DASHES = ("-", "--", ":", "-.")
_NUM_LEVELS = 15

LandscapePlot: TypeAlias = Literal["curve", "contour", "surface"]


@final
@dataclass(frozen=True, eq=False)
class LossLandscape(Record):
    """The loss along lines, or over a plane, in parameter space.

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
    """The multiples of the directions, float64: one array for lines, two for a plane."""
    values: HostArray
    """The loss, float64: (lines, points) or (points, points).

    For a plane, entry [i, j] is at the i-th multiple of the first direction and the j-th
    multiple of the second.
    """
    names: tuple[str, ...]
    """The names of the directions."""
    lengths: tuple[float, ...]
    """The 2-norms of the directions, so that coordinates can be converted to distances."""
    loss: float
    """The loss of the unperturbed network."""
    num_evaluations: int
    """The number of points at which the loss was evaluated over all of the data."""
    filter_normalized: bool
    """Whether the filters of the directions were scaled to the norms of the network's filters."""
    seed: int
    """The seed that reproduces the random directions."""

    @property
    def is_surface(self) -> bool:
        """Whether the loss is over a plane instead of along lines."""
        return len(self.coordinates) == 2

    def plot(self, ax: Any = None, kind: LandscapePlot | None = None) -> Any:
        """Plot the landscape on matplotlib Axes and return them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The Axes of a new figure by default. "surface" needs Axes with projection="3d".
        kind : {"curve", "contour", "surface"}, optional
            "curve" for lines; "contour" (the default) or "surface" for a plane.

        Raises
        ------
        ValueError
            The kind does not fit the landscape, or the Axes do not fit the kind.
        """
        kind = kind or ("contour" if self.is_surface else "curve")
        if kind not in ("curve", "contour", "surface") or (kind == "curve") == self.is_surface:
            fitting = "'contour' or 'surface'" if self.is_surface else "'curve'"
            raise ValueError(f"kind must be {fitting} for this landscape: got {kind!r}.")
        draw = {"curve": plot_curves, "contour": plot_contours, "surface": plot_surface}
        return draw[kind](self, ax=ax)

    def _rows(self) -> list[tuple[str, str]]:
        finite = self.values[np.isfinite(self.values)]
        ends = f"{finite.min():.6g} to {finite.max():.6g}" if finite.size else "not finite"
        x = self.coordinates[0]
        size = " x ".join(str(axis.size) for axis in self.coordinates)
        what = "plane of" if self.is_surface else "along"
        return [
            ("loss", f"{self.loss:.8g} at the network, {ends} around it"),
            ("directions", f"{what} {', '.join(self.names)}"),
            ("lengths", ", ".join(f"{length:.4g}" for length in self.lengths)),
            ("points", f"{size}, from {x[0]:g} to {x[-1]:g}"),
            ("filters", "normalized" if self.filter_normalized else "not normalized"),
            ("seed", str(self.seed)),
        ]


def plot_curves(landscape: LossLandscape, *, ax: Axes | None = None) -> Axes:
    """Plot the loss along each direction as a curve, and mark the unperturbed network.

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
    """Plot the loss over a plane as filled contours, and mark the unperturbed network.

    Levels are spaced quadratically, min + (max - min) t^2 for equidistant t, so the contours
    of a quadratic function are evenly spaced.

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
    values = _finite(landscape.values).T  # matplotlib expects y on the first axis
    low, high = float(values.min()), float(values.max())
    # Levels must increase, also for a constant loss.
    rise = max(high - low, 1e-12 * max(abs(low), abs(high)), np.finfo(float).tiny)
    levels = low + rise * np.linspace(0, 1, _NUM_LEVELS) ** 2
    norm = _level_norm(levels)
    filled = ax.contourf(x, y, values, levels=levels, cmap=COLOUR_MAP, norm=norm)
    ax.contour(x, y, values, levels=levels[1:-1], colors="white", linewidths=0.5, alpha=0.6)
    bar = ax.figure.colorbar(filled, ax=ax, label="loss", ticks=levels[:: _NUM_LEVELS // 7])
    bar.ax.yaxis.set_major_formatter("{x:.3g}")
    if x[0] <= 0 <= x[-1]:
        ax.plot(0.0, 0.0, "o", color="white", markeredgecolor="black", markersize=6)
    ax.set_xlabel(f"multiple of {landscape.names[0]}")
    ax.set_ylabel(f"multiple of {landscape.names[1]}")
    return ax


def plot_surface(landscape: LossLandscape, *, ax: Any = None) -> Any:
    """Plot the loss over a plane as a surface in three dimensions.

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
        The given Axes have two dimensions.
    """
    ax = axes_or_new(ax, projection="3d")
    if not hasattr(ax, "plot_surface"):
        raise ValueError(
            "a surface needs Axes with three dimensions: create them with "
            'pyplot.subplots(subplot_kw={"projection": "3d"}), or leave ax out.'
        )
    x, y = np.meshgrid(*landscape.coordinates, indexing="ij")
    z = _finite(landscape.values).filled(np.nan)
    ax.plot_surface(x, y, z, cmap=COLOUR_MAP, rcount=z.shape[0], ccount=z.shape[1], linewidth=0)
    ax.locator_params(nbins=5)  # tick labels overlap on the short, slanted axes
    ax.set_xlabel(f"multiple of {landscape.names[0]}", labelpad=8)
    ax.set_ylabel(f"multiple of {landscape.names[1]}", labelpad=8)
    ax.set_zlabel("loss")
    return ax


def curve_style(j: int) -> dict[str, Any]:
    """The colour and line style of the j-th of several curves."""
    count = len(_COLOURS)
    return {"color": _COLOURS[j % count], "linestyle": _DASHES[j // count % len(_DASHES)]}


def _finite(values: HostArray) -> Any:
    """The values, masked where the loss is infinite or NaN."""
    return np.ma.masked_invalid(values)


def _level_norm(levels: HostArray) -> Any:
    """A normalization that gives every contour level the same share of the colour map."""
    from matplotlib.colors import BoundaryNorm  # matplotlib is optional

    return BoundaryNorm(levels, 256)
