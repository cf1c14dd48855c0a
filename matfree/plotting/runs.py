"""Pictures of how an estimate came about: step by step, probe by probe, entry by entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats

from matfree.plotting.axes import BLUE, GREEN, PURPLE, VERMILLION, axes_or_new, ink, legend
from matfree.protocol import HostArray

if TYPE_CHECKING:  # results import this package, so it can only read their attributes
    from matplotlib.axes import Axes

    from matfree.results import EigenResult, Estimate


_FLOOR = 1e-17  # below the relative rounding of any precision


def plot_power(result: EigenResult, exact: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw how the residual of each pair fell, step by step.

    Parameters
    ----------
    result : EigenResult with a history
    exact : (k,) array_like of float, optional
        The eigenvalues in the order of ``result.values``; the errors are drawn dashed.
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
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("relative to the norm of the operator")
    legend(ax)
    return ax


def plot_search(result: EigenResult, exact: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw how the largest residual of a Krylov eigensolver fell, product by product.

    Where a search of the complement finds a better pair, it goes up again.

    Parameters
    ----------
    result : EigenResult with a history
    exact : (k,) array_like of float, optional
        The eigenvalues in the order of ``result.values``; the first one's error is dashed.
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
    'products'
    """
    ax = axes_or_new(ax)
    steps = np.asarray(result.history, dtype=np.float64).reshape(-1, 3)
    products = steps[:, 0]
    ax.plot(products, _above_rounding(steps[:, 2]), "o-", color=BLUE, label="largest residual")
    if exact is not None:
        error = np.abs(steps[:, 1] - np.ravel(exact)[0]) / (result.norm or 1.0)
        ax.plot(products, _above_rounding(error), "--", color=BLUE, label="error of the first")
    ax.set_yscale("log")
    ax.set_xlabel("products")
    ax.set_ylabel("relative to the norm of the operator")
    legend(ax)
    return ax


def plot_trace(estimate: Estimate, exact: float | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the running mean over probes and its 95 % interval, which shrinks as 1/sqrt(m).

    Parameters
    ----------
    estimate : Estimate of a number; its ``samples`` are drawn (the real parts)
    exact : float, optional
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
    if estimate.samples is None:
        ax.axhline(np.real(estimate.value), color=BLUE, label=f"{estimate.method}, no sampling")
    else:
        _draw_running(ax, np.real(_host(estimate.samples)))
    if exact is not None:
        ax.axhline(exact, color=ink(ax), linewidth=1, label="exact")
    ax.set_xlabel("probes")
    ax.set_ylabel("trace")
    legend(ax)
    return ax


def plot_diagonal(estimate: Estimate, exact: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw the entries of an estimated diagonal with their 95 % intervals.

    Parameters
    ----------
    estimate : Estimate of an (n,) array
    exact : (n,) array_like, optional
        Then entries are sorted by the exact ones, which are drawn as a line, and intervals
        that miss theirs have a colour of their own.
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
    half = np.where(np.isfinite(half), half, 0.0)  # one probe has no interval
    missed = np.zeros(value.size, dtype=bool)
    if exact is not None:
        exact = np.real(np.asarray(exact))
        order = np.argsort(exact, kind="stable")
        missed = (np.abs(value - exact) > half)[order]
        value, half, exact = value[order], half[order], exact[order]
    groups = [(~missed, BLUE, 0.45, "95 % interval")]
    if missed.any():
        groups.append((missed, VERMILLION, 0.9, f"{missed.sum()} that miss"))
    for chosen, colour, alpha, label in groups:
        low, high = value[chosen] - half[chosen], value[chosen] + half[chosen]
        style: dict[str, Any] = {"color": colour, "alpha": alpha, "linewidth": 1, "label": label}
        ax.vlines(np.flatnonzero(chosen), low, high, rasterized=True, **style)
    ax.plot(value, ".", color=BLUE, markersize=3, rasterized=True, label="estimate")
    if exact is not None:
        ax.plot(exact, color=ink(ax), linewidth=1, label="exact")
    ax.set_xlabel("entry" if exact is None else "entry, sorted by the exact value")
    ax.set_ylabel("diagonal")
    legend(ax)
    return ax


def _draw_running(ax: Axes, samples: HostArray) -> None:
    m, mean, half = _running(samples)
    ax.plot(m, samples, ".", color=GREEN, alpha=0.6, markersize=4, label="one probe")
    low, high = (mean - half)[1:], (mean + half)[1:]  # one probe has no interval
    ax.fill_between(m[1:], low, high, color=BLUE, alpha=0.3, linewidth=0)
    ax.plot(m, mean, color=BLUE, label="running mean, 95 % interval")
    reach = _reach(samples, mean, half)
    ax.set_ylim(mean[-1] - reach, mean[-1] + reach)
    if m.size > 1:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")


def _running(samples: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """Numbers of probes, running means, and half-widths of their 95 % intervals."""
    m = np.arange(1, samples.size + 1)
    centered = samples - samples.mean()  # sums of squares of these do not cancel
    mean = np.cumsum(centered) / m
    spread = np.maximum(np.cumsum(centered**2) - m * mean**2, 0.0)
    half = np.zeros(samples.size)
    later = m[1:]
    quantile = scipy.stats.t.ppf(0.975, later - 1)
    half[1:] = quantile * np.sqrt(spread[1:] / (later * (later - 1)))
    return m, samples.mean() + mean, half


def _reach(samples: HostArray, mean: HostArray, half: HostArray) -> float:
    """How far up and down to show: all samples, and the interval from four probes on."""
    reach = 1.1 * max(np.abs(samples - mean[-1]).max(), half[min(3, half.size - 1)])
    return float(reach) or 0.1 * abs(float(mean[-1])) or 1.0


def _above_rounding(x: HostArray) -> HostArray:
    """What a logarithmic axis can show: an error of exactly 0 lies on its floor."""
    return np.maximum(x, _FLOOR)


def _host(x: Any) -> HostArray:
    if hasattr(x, "get"):
        x = x.get()  # CuPy's own way to the host
    return np.from_dlpack(x, device="cpu") if hasattr(x, "__dlpack__") else np.asarray(x)
