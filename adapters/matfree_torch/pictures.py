"""Pictures of losses along directions and of curvature over training.

As in :mod:`matfree.plotting`: drawn on the Axes given or on new ones, which are returned, and
nothing is shown, saved or configured. Colour maps are matplotlib's perceptually uniform ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from matfree.plotting.axes import BLUE, GREEN, PURPLE, VERMILLION, axes_or_new, ink, legend

if TYPE_CHECKING:  # the records import this module, so it can only read their attributes
    from matplotlib.axes import Axes

    from matfree_torch.history import TrainingHistory
    from matfree_torch.landscape import LossLandscape

HostArray = np.ndarray[Any, Any]

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE)
_DASHES = ("-", "--", ":", "-.")
_MAP = "cividis"
_LEVELS = 15
_ROWS = 400  # of the picture of densities: four a smoothing width


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
        ax.plot(x, _finite(values), label=name, **_line(j))
    if x[0] <= 0 <= x[-1]:
        ax.plot(0.0, landscape.loss, "o", color=ink(ax), markersize=5, label="the network")
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
    filled = ax.contourf(x, y, values, levels=levels, cmap=_MAP, norm=shades)
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
    ax.plot_surface(x, y, z, cmap=_MAP, rcount=z.shape[0], ccount=z.shape[1], linewidth=0)
    ax.locator_params(nbins=5)  # slanted axes are short, and their numbers lie side by side
    ax.set_xlabel(f"multiple of {landscape.names[0]}", labelpad=8)
    ax.set_ylabel(f"multiple of {landscape.names[1]}", labelpad=8)
    ax.set_zlabel("loss")
    return ax


def plot_eigenvalue_history(history: TrainingHistory, *, ax: Axes | None = None) -> Axes:
    """Draw the followed eigenvalues over checkpoints; bars reach as far as residuals allow.

    Parameters
    ----------
    history : TrainingHistory
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x = _positions(ax, history.labels)
    reach = history.residuals * history.norms[:, None]
    for j, (values, half) in enumerate(zip(history.values.T, reach.T, strict=True)):
        style = _line(j)
        ax.errorbar(x, values, half, marker=".", capsize=2, label=f"eigenvalue {j + 1}", **style)
    ax.set_ylabel("eigenvalue")
    legend(ax)
    return ax


def plot_trace_history(history: TrainingHistory, *, ax: Axes | None = None) -> Axes:
    """Draw the trace over checkpoints with its 95 % interval.

    Parameters
    ----------
    history : TrainingHistory with traces
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x = _positions(ax, history.labels)
    estimates = history.traces
    half = np.asarray([float(estimate.half_width()) for estimate in estimates])
    value = np.asarray([float(estimate) for estimate in estimates])
    inside = np.where(np.isfinite(half), half, 0.0)  # one probe has no interval
    ax.fill_between(x, value - inside, value + inside, color=BLUE, alpha=0.3, linewidth=0)
    ax.plot(x, value, marker=".", color=BLUE, label="trace, 95 % interval")
    ax.set_ylabel("trace")
    legend(ax)
    return ax


def plot_density_history(history: TrainingHistory, *, ax: Axes | None = None) -> Axes:
    """Draw the spectral density over checkpoints, one column each, on a logarithmic scale.

    Parameters
    ----------
    history : TrainingHistory with densities
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x, densities = _positions(ax, history.labels), history.densities
    low = min(density.support[0] for density in densities)
    high = max(density.support[1] for density in densities)
    sigma = 0.01 * ((high - low) or max(abs(low), abs(high)) or 1.0)  # one for all columns
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, _ROWS + 1)
    columns = [_smoothed(density, (edges[1:] + edges[:-1]) / 2, sigma) for density in densities]
    image = np.log10(np.maximum(np.stack(columns, axis=1), 0.1 / (history.size * sigma * 2.5)))
    mesh = ax.pcolormesh(_edges(x), edges, image, cmap=_MAP, rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="log10 of the density")
    ax.set_ylabel("eigenvalue")
    return ax


def _line(j: int) -> dict[str, Any]:
    count = len(_COLOURS)
    return {"color": _COLOURS[j % count], "linestyle": _DASHES[j // count % len(_DASHES)]}


def _finite(values: HostArray) -> Any:
    """Values with gaps where the loss is infinite or NaN."""
    return np.ma.masked_invalid(values)


def _normed(levels: HostArray) -> Any:
    from matplotlib.colors import BoundaryNorm  # only where something is drawn

    return BoundaryNorm(levels, 256)


def _positions(ax: Axes, labels: Sequence[Any]) -> HostArray:
    """Where checkpoints are on the axis: at their labels if these are numbers."""
    ax.set_xlabel("checkpoint")
    if all(isinstance(label, int | float) for label in labels):
        return np.asarray(labels, dtype=np.float64)
    x = np.arange(len(labels), dtype=np.float64)
    ax.set_xticks(x, list(map(str, labels)))
    return x


def _edges(x: HostArray) -> HostArray:
    """The borders of columns centred, as far as their distances allow, on x."""
    if x.size == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate(([2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]))


def _smoothed(density: Any, grid: HostArray, sigma: float) -> HostArray:
    low, high = density.support
    reach = (high - low) or max(abs(low), abs(high)) or 1.0
    smoothed: HostArray = density.density(grid, sigma / reach)  # widths are relative to the range
    return smoothed
