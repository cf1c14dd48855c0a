"""Plots of how an estimate was computed: by step, by probe, or by entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from matfree.plotting.axes import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILLION,
    axes_or_new,
    draw_exact,
    labelled,
    text_colour,
)
from matfree.plotting.plottable import PlottableEigenpairs, PlottableEstimate
from matfree.protocol import HostArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LARGEST_BAND = 60  # points at which the interval of a running mean is computed
_FLOOR = 1e-17  # below the machine epsilon of every precision


def plot_power(result: PlottableEigenpairs, exact: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw the residual of each pair of a power iteration against the steps.

    Parameters
    ----------
    result : EigenResult with a history
    exact : (k,) array_like of float, optional
        The exact eigenvalues in the order of ``result.values``. If they are given, the errors
        are drawn as dashed lines.
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> result = mf.power_iteration(np.diag([1.0, 2.0, 4.0]), seed=0)
    >>> plotting.plot_power(result, [4.0]).get_yscale()
    'log'
    """
    ax = axes_or_new(ax)
    scale = result.norm or 1.0
    colours = (BLUE, VERMILLION, GREEN, PURPLE)
    for pair in sorted({entry[0] for entry in result.history}):
        steps = np.asarray([entry[1:] for entry in result.history if entry[0] == pair])
        colour, x = colours[pair % len(colours)], np.arange(1, len(steps) + 1)
        ax.plot(x, _above_rounding(steps[:, 1]), color=colour, label=f"pair {pair + 1}: residual")
        if exact is not None:
            error = np.abs(steps[:, 0] - np.asarray(exact)[pair]) / scale
            ax.plot(
                x,
                _above_rounding(error),
                color=colour,
                linestyle="--",
                label=f"pair {pair + 1}: error",
            )
    return _residual_axes(ax, "step")


def plot_search(result: PlottableEigenpairs, exact: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw the largest residual of a Krylov eigensolver against the number of matvecs.

    The residual increases again if the search of the orthogonal complement finds a pair that
    was missed.

    Parameters
    ----------
    result : EigenResult with a history
    exact : (k,) array_like of float, optional
        The exact eigenvalues in the order of ``result.values``. If they are given, the error of
        the first is drawn as a dashed line.
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> result = mf.eigsh(np.diag(np.linspace(0.0, 1.0, 50)), 2, seed=0)
    >>> plotting.plot_search(result).get_xlabel()
    'matvecs'
    """
    ax = axes_or_new(ax)
    steps = np.asarray(result.history, dtype=np.float64).reshape(-1, 3)
    matvecs = steps[:, 0]
    ax.plot(matvecs, _above_rounding(steps[:, 2]), "o-", color=BLUE, label="largest residual")
    if exact is not None:
        error = np.abs(steps[:, 1] - np.ravel(exact)[0]) / (result.norm or 1.0)
        ax.plot(matvecs, _above_rounding(error), "--", color=BLUE, label="error of the first")
    return _residual_axes(ax, "matvecs")


def plot_trace(
    estimate: PlottableEstimate, exact: float | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the running mean over m probes and its 95 % interval, which shrinks as 1/sqrt(m).

    Parameters
    ----------
    estimate : Estimate of a number
        The real parts of its ``samples`` are drawn, if its method averages independent samples;
        otherwise only its value and interval.
    exact : float, optional
        The exact value, drawn as a line.
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> estimate = mf.trace(np.ones((9, 9)), num_probes=20, seed=0)
    >>> ax = plotting.plot_trace(estimate, exact=9.0)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('probes', 'trace')
    """
    ax = axes_or_new(ax)
    if estimate.samples is not None and estimate.mergeable:
        _draw_running_mean(ax, estimate)
    else:
        center, half = float(np.real(estimate.value)), float(estimate.half_width())
        ax.axhline(center, color=BLUE, label=f"{estimate.method}, 95 % interval")
        if np.isfinite(half):
            ax.axhspan(center - half, center + half, color=BLUE, alpha=0.3, linewidth=0)
    if exact is not None:
        ax.axhline(exact, color=text_colour(ax), linewidth=1, label="exact")
    return labelled(ax, "probes", "trace")


def plot_diagonal(
    estimate: PlottableEstimate, exact: Any = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the entries of an estimated diagonal with their 95 % intervals.

    Parameters
    ----------
    estimate : Estimate of an (n,) array
    exact : (n,) array_like, optional
        The exact diagonal. If it is given, it is drawn as a line, the entries are sorted by
        it, and intervals that do not contain the exact entry are drawn in another colour.
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> A = np.diag(np.arange(1.0, 10.0)) + 0.1
    >>> ax = plotting.plot_diagonal(mf.diagonal(A, num_probes=20, seed=0), exact=np.diag(A))
    >>> ax.get_xlabel()
    'entry, sorted by the exact value'
    """
    ax = axes_or_new(ax)
    value, half = np.real(_host(estimate.value)), np.real(_host(estimate.half_width()))
    half = np.where(np.isfinite(half), half, 0.0)  # after one probe the interval is infinite
    missed = np.zeros(value.size, dtype=bool)
    if exact is not None:
        exact = np.real(np.asarray(exact))
        # A stable sort keeps equal entries of the exact diagonal in their order.
        order = np.argsort(exact, kind="stable")
        missed = (np.abs(value - exact) > half)[order]
        value, half, exact = value[order], half[order], exact[order]
    groups = [(~missed, BLUE, 0.45, "95 % interval")]
    if missed.any():
        groups.append((missed, VERMILLION, 0.9, f"{missed.sum()} intervals that miss"))
    # Thousands of intervals are rasterized, so that vector files remain small.
    for chosen, colour, alpha, label in groups:
        low, high = value[chosen] - half[chosen], value[chosen] + half[chosen]
        style: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 1, "label": label}
        ax.vlines(np.flatnonzero(chosen), low, high, rasterized=True, **style)
    ax.plot(value, ".", color=BLUE, markersize=3, rasterized=True, label="estimate")
    if exact is not None:
        draw_exact(ax, exact)
    x = "entry" if exact is None else "entry, sorted by the exact value"
    return labelled(ax, x, "diagonal")


def _residual_axes(ax: Axes, x: str) -> Axes:
    ax.set_yscale("log")
    return labelled(ax, x, "relative to the norm of the operator")


def _draw_running_mean(ax: Axes, estimate: PlottableEstimate) -> None:
    samples = np.real(_host(estimate.samples))
    m = np.arange(1, samples.size + 1)
    mean = np.cumsum(samples) / m
    ax.plot(m, samples, ".", color=GREEN, alpha=0.6, markersize=4, label="one probe")
    ax.plot(m, mean, color=BLUE, label="running mean, 95 % interval")
    shown = np.unique(np.geomspace(min(2, m[-1]), m[-1], _LARGEST_BAND).astype(int))
    half = np.asarray([estimate.first(int(count)).half_width() for count in shown])
    center = mean[shown - 1]
    known = np.isfinite(half)  # there is no interval from one probe
    low, high = (center - half)[known], (center + half)[known]
    ax.fill_between(shown[known], low, high, color=BLUE, alpha=0.3, linewidth=0)
    # For all samples, and for the interval from four probes on.
    reach = 1.1 * max([np.abs(samples - mean[-1]).max(), *half[known & (shown >= 4)][:1]])
    reach = float(reach) or 0.1 * abs(float(mean[-1])) or 1.0
    ax.set_ylim(mean[-1] - reach, mean[-1] + reach)
    # Every halving of the interval takes the same distance on this axis: two units.
    if m.size > 1:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")


def _above_rounding(x: HostArray) -> HostArray:
    """Raise zeros to a small positive number, which a logarithmic axis can show."""
    return np.maximum(x, _FLOOR)


def _host(x: Any) -> HostArray:
    if hasattr(x, "get"):
        x = x.get()  # CuPy arrays are copied to the host by this method only
    return np.from_dlpack(x, device="cpu") if hasattr(x, "__dlpack__") else np.asarray(x)
