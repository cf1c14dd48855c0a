"""Plots of a spectral density and of its distribution function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from matfree.plotting.axes import (
    BLUE,
    VERMILLION,
    axes_or_new,
    draw_exact,
    labelled,
    text_colour,
)
from matfree.plotting.plottable import PlottableDensity
from matfree.protocol import HostArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_ISOLATION = 5.0  # smoothing widths between an isolated cluster of nodes and the next node
_MAX_LABELS = 6  # isolated eigenvalues that are labelled with their number


class Atom(NamedTuple):
    """A cluster of Ritz values within one smoothing width, isolated from all others.

    Examples
    --------
    >>> from matfree.plotting import Atom
    >>> Atom(position=5.0, mass=0.01)
    Atom(position=5.0, mass=0.01)
    """

    position: float
    mass: float
    """The estimated fraction of all eigenvalues in the cluster."""


def plot_density(
    density: PlottableDensity,
    *,
    ax: Axes | None = None,
    width: float | None = None,
    exact: Any = None,
    symlog: bool = False,
    reading: Literal["atoms", "spread"] = "atoms",
) -> Axes:
    r"""Draw an estimated spectral density on a logarithmic axis.

    The curve is the estimate of

    .. math:: \frac{1}{n} \sum_i \mathcal{N}(x; \lambda_i, \sigma^2),

    whose integral is 1. It is surrounded by the 95 % band of ``density_band``, which covers the
    sampling error only. The density axis begins at :math:`0.1 / (n \sigma \sqrt{2 \pi})`, a
    tenth of the peak of a single eigenvalue. Isolated Ritz values are marked by stems, which
    are labelled with the estimated number of eigenvalues. If zero is within the plot, a grey
    band around it contains the eigenvalues whose sign is not determined.

    Parameters
    ----------
    density : SpectralDensity
    ax : matplotlib Axes, optional
        The Axes to draw on; those of a new figure by default.
    width : float, optional
        sigma, relative to the range of the spectrum; 0.01 by default.
    exact : (n,) array_like of float, optional
        All exact eigenvalues, drawn as a line with the same smoothing.
    symlog : bool
        Whether the eigenvalue axis is logarithmic outside of a linear part around zero, which
        extends to sigma rounded up to a power of ten.
    reading : {"atoms", "spread"}
        How nodes are interpreted as a distribution; see ``SpectralDensity.pieces``.

    Returns
    -------
    The Axes drawn on.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ArithmeticError
        The integral of the curve differs from 1 by more than 1e-3.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> A = np.diag(np.r_[np.linspace(0.0, 1.0, 99), 5.0])
    >>> ax = plotting.plot_density(mf.spectral_density(A, num_steps=20, seed=0))
    >>> ax.get_xlabel(), ax.get_yscale()
    ('eigenvalue', 'log')
    """
    ax = axes_or_new(ax)
    grid = density.grid(width)
    sigma = (density.support[0] - grid[0]) / 5  # the grid extends five widths beyond
    curve = density.density(grid, width, reading=reading)
    # A grid that does not resolve the peaks would show a wrong density.
    _require_unit_mass(grid, curve)
    floor = 0.1 / (density.size * sigma * np.sqrt(2 * np.pi))
    ax.set_yscale("log")
    _draw_density_band(ax, density, grid, width, reading, floor)
    ax.plot(grid, curve, color=BLUE, label="estimate")
    _draw_atoms(ax, isolated(density, sigma), density.size, sigma, floor)
    _draw_noise_floor(ax, density.noise_floor, grid)
    if exact is not None:
        _draw_exact_density(ax, np.asarray(exact, dtype=np.float64), grid, sigma)
    ax.set_ylim(floor, 4 * curve.max())
    if symlog:  # a power of ten, so that ticks at the ends of the linear part do not overlap
        ax.set_xscale("symlog", linthresh=10.0 ** np.ceil(np.log10(sigma)))
    ax.set_title(
        f"$\\sigma$ = {sigma:.2g}, {density.num_probes} probes, {density.num_steps} steps, "
        f"noise floor {density.noise_floor:.1g}",
        fontsize="small",
        loc="left",
    )
    return labelled(ax, "eigenvalue", "density")


def plot_cdf(
    density: PlottableDensity,
    *,
    ax: Axes | None = None,
    exact: Any = None,
    band: bool = False,
    reading: Literal["atoms", "spread"] = "atoms",
) -> Axes:
    """Draw the estimated distribution function, without smoothing.

    If the exact eigenvalues are given, the area between the two distribution functions is
    shaded. Its size is their Wasserstein-1 distance.

    Parameters
    ----------
    density : SpectralDensity
    ax : matplotlib Axes, optional
    exact : (n,) array_like of float, optional
        All exact eigenvalues.
    band : bool
        Whether to draw the 95 % band of the exact distribution function; see ``cdf_band``.
    reading : {"atoms", "spread"}
        How nodes are interpreted as a distribution; see ``SpectralDensity.pieces``.

    Returns
    -------
    The Axes drawn on.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> density = mf.spectral_density(np.diag(np.linspace(0.0, 1.0, 99)), num_steps=20, seed=0)
    >>> ax = plotting.plot_cdf(density, band=True)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['95 % band', 'estimate']
    """
    ax = axes_or_new(ax)
    eigenvalues = np.sort(np.asarray([] if exact is None else exact, dtype=np.float64))
    jumps = np.unique(np.concatenate([*density.nodes, eigenvalues]))
    reach = 0.05 * (jumps[-1] - jumps[0]) or 0.05 * abs(jumps[0]) or 1.0
    ends = np.concatenate(([jumps[0] - reach], jumps, [jumps[-1] + reach]))
    x = np.unique(np.concatenate((_before(density, ends), ends)))  # both sides of a jump
    estimate = density.cdf(x, reading=reading)
    if band:
        _draw_cdf_band(ax, density, ends)
    ax.plot(x, estimate, color=BLUE, label="estimate")
    if exact is not None:
        rounded = x + density.node_rounding  # as in ``density.cdf``
        exact_cdf = np.searchsorted(eigenvalues, rounded, side="right") / eigenvalues.size
        draw_exact(ax, x, exact_cdf)
        ax.fill_between(
            x, estimate, exact_cdf, color=VERMILLION, alpha=0.5, linewidth=0, label="difference"
        )
    ax.set_ylim(-0.02, 1.02)
    return labelled(ax, "eigenvalue", "fraction of eigenvalues at or below")


def isolated(density: PlottableDensity, sigma: float) -> list[Atom]:
    """Clusters of Ritz values that are no wider than sigma and 5 sigma away from all others.

    Parameters
    ----------
    density : SpectralDensity
    sigma : float
        The smoothing width, in units of the eigenvalues.

    Returns
    -------
    list of Atom, ascending

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> from matfree import plotting
    >>> A = np.diag(np.r_[np.linspace(0.0, 1.0, 99), 5.0])
    >>> density = mf.spectral_density(A, num_steps=30, seed=0)
    >>> [round(atom.position, 6) for atom in plotting.isolated(density, sigma=0.05)]
    [5.0]
    """
    nodes = np.concatenate(density.nodes)
    order = np.argsort(nodes)
    nodes, weights = nodes[order], np.concatenate(density.weights)[order] / density.num_probes
    breaks = np.flatnonzero(np.diff(nodes) > _ISOLATION * sigma) + 1
    clusters = zip(np.split(nodes, breaks), np.split(weights, breaks), strict=True)
    return [
        Atom(float(np.average(x, weights=w)), float(w.sum()))
        for x, w in clusters
        if x[-1] - x[0] <= sigma and w.sum() > 0
    ]


def _draw_density_band(
    ax: Axes,
    density: PlottableDensity,
    grid: HostArray,
    width: float | None,
    reading: Literal["atoms", "spread"],
    floor: float,
) -> None:
    low, high = density.density_band(grid, width, reading=reading)
    low, high = np.maximum(low, floor), np.maximum(high, floor)  # 0 is not on a logarithmic axis
    ax.fill_between(grid, low, high, color=BLUE, alpha=0.35, linewidth=0, label="95 % band")


def _draw_cdf_band(ax: Axes, density: PlottableDensity, ends: HostArray) -> None:
    """Draw the band just below, at, and half-way between the nodes, where it is widest."""
    between = (ends[:-1] + ends[1:]) / 2
    x = np.unique(np.concatenate((ends, _before(density, ends), between)))
    low, high = density.cdf_band(x)
    ax.fill_between(x, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % band")


def _before(density: PlottableDensity, jumps: HostArray) -> HostArray:
    """The next points at which the distribution function does not include the jumps."""
    return np.nextafter(jumps - 2 * density.node_rounding, -np.inf)


def _draw_noise_floor(ax: Axes, floor: float, grid: HostArray) -> None:
    if grid[0] <= floor and -floor <= grid[-1]:
        ax.axvspan(
            -floor, floor, color=text_colour(ax), alpha=0.3, linewidth=0.6, label="noise floor"
        )


def _draw_atoms(ax: Axes, atoms: list[Atom], size: int, sigma: float, floor: float) -> None:
    # The height of the smoothed density at an isolated eigenvalue is its mass times this.
    peak = 1 / (sigma * np.sqrt(2 * np.pi))
    shown = [atom for atom in atoms if atom.mass * peak > floor]
    if not shown:
        return
    x, top = [atom.position for atom in shown], [atom.mass * peak for atom in shown]
    ax.vlines(x, floor, top, color=VERMILLION, linewidth=1)
    label = "isolated" + (", with number" if len(shown) <= _MAX_LABELS else "")
    ax.plot(x, top, "o", color=VERMILLION, markersize=4, label=label)
    for place, (atom, height) in enumerate(zip(shown, top, strict=True)):
        count = atom.mass * size
        if len(shown) <= _MAX_LABELS:
            ax.annotate(
                f"{count:.0f}" if count >= 10 else f"{count:.2g}",
                (atom.position, height),
                xytext=(0, 4 + 11 * (place % 2)),  # labels of close neighbours would overlap
                textcoords="offset points",
                ha="center",
                fontsize="small",
                bbox={"boxstyle": "round,pad=0.1", "fc": ax.get_facecolor(), "alpha": 0.7, "lw": 0},
            )


def _draw_exact_density(ax: Axes, eigenvalues: HostArray, grid: HostArray, sigma: float) -> None:
    total = np.zeros(grid.shape)
    for eigenvalue in eigenvalues:
        total += np.exp(-0.5 * ((grid - eigenvalue) / sigma) ** 2)
    total /= eigenvalues.size * sigma * np.sqrt(2 * np.pi)
    draw_exact(ax, grid, total, linestyle="--")


def _require_unit_mass(grid: HostArray, curve: HostArray) -> None:
    mass = float(np.trapezoid(curve, grid))
    if not abs(mass - 1) < 1e-3:
        raise ArithmeticError(
            f"the integral of the smoothed density is {mass:.6g}, not 1, because the smoothing "
            "width is below the floating-point resolution of this spectrum; raise width."
        )
