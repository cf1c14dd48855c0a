"""PyHessian's plot of a spectral density from lists of nodes and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from matfree import plotting
from matfree.plotting.axes import axes_or_new
from matfree.protocol import HostArray
from matfree.results import SpectralDensity

_LOWEST_DENSITY = (
    1e-7  # of the density axis, if the number of eigenvalues is unknown; that of PyHessian
)


class NodeLists(list[list[float]]):
    """Lists of nodes together with their density, which holds more than the lists for a plot."""

    density: SpectralDensity


def get_esd_plot(
    eigenvalues: Sequence[Sequence[float]],
    weights: Sequence[Sequence[float]],
    *,
    size: int | None = None,
    ax: Any = None,
) -> Any:
    """Plot a spectral density from the lists that ``density`` returns.

    Parameters
    ----------
    eigenvalues, weights : lists of nodes and weights, one per probe
        Lists, arrays or tensors, in any order; the weights of a probe are scaled to the sum 1. A
        single probe may be given without the outer list.
    size : int, optional
        The number of parameters, for lists that are not those of ``density``, such as copies or
        those from a file. It determines the lower end of the plot and labels isolated eigenvalues
        with their number; without it, the plot begins at a density of 1e-7.
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on. The plot is neither shown nor written to a file; call
    ``ax.figure.savefig("example.pdf")``.

    Raises
    ------
    ValueError
        The lists do not match, or they hold values that are not finite or not real, or negative
        weights.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch.pyhessian import get_esd_plot, hessian
    >>> data = torch.ones(4, 3), torch.zeros(4, 1)
    >>> hessian_comp = hessian(torch.nn.Linear(3, 1), torch.nn.MSELoss(), data=data)
    >>> get_esd_plot(*hessian_comp.density()).get_xlabel()
    'eigenvalue'
    """
    if isinstance(eigenvalues, NodeLists) and size is None:
        return plotting.plot_density(eigenvalues.density, ax=ax)
    density = _density_of_lists(eigenvalues, weights, size or 1)
    if size is not None:
        return plotting.plot_density(density, ax=ax)
    ax = axes_or_new(ax)
    grid = density.grid(None)
    ax.semilogy(grid, density.density(grid) + _LOWEST_DENSITY)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    return ax


def _density_of_lists(eigenvalues: Any, weights: Any, size: int) -> SpectralDensity:
    if len(eigenvalues) != len(weights) or not len(eigenvalues):
        raise ValueError(
            f"there must be weights for the nodes of every probe: got {len(eigenvalues)} lists of "
            f"nodes and {len(weights)} of weights."
        )
    if np.ndim(eigenvalues[0]) == 0:
        eigenvalues, weights = [eigenvalues], [weights]
    pairs = [_sorted_nodes(*pair) for pair in zip(eigenvalues, weights, strict=True)]
    return SpectralDensity(
        nodes=tuple(nodes for nodes, _ in pairs),
        weights=tuple(mass / mass.sum() for _, mass in pairs),
        size=size,
        num_steps=max(len(nodes) for nodes, _ in pairs),
        num_matvecs=sum(len(nodes) for nodes, _ in pairs),
        epsilon=float(np.finfo(np.float32).eps),
        seed=0,
    )


def _sorted_nodes(nodes: Any, weights: Any) -> tuple[HostArray, HostArray]:
    x, mass = _real(nodes, "nodes"), _real(weights, "weights")
    if x.shape != mass.shape or x.ndim != 1 or not len(x):
        raise ValueError(
            "nodes and weights of a probe must be lists of one length: got shapes "
            f"{x.shape} and {mass.shape}."
        )
    if mass.min() < 0 or mass.sum() == 0:
        raise ValueError(
            f"weights must not be negative, and one must be positive: the least is {mass.min():g}, "
            f"and their sum is {mass.sum():g}."
        )
    ascending = np.argsort(x)
    return x[ascending], mass[ascending]


def _real(values: Any, what: str) -> HostArray:
    """Values as float64; torch.linalg.eig returns complex ones without imaginary parts."""
    x = np.asarray([complex(value) for value in values])
    if not np.isfinite(x).all():
        raise ValueError(f"the {what} must be finite: got {x[~np.isfinite(x)][0].real}.")
    if np.any(abs(x.imag) > 1e-6 * abs(x).max(initial=0.0)):
        raise ValueError(
            f"the {what} of a symmetric operator are real: got an imaginary part of "
            f"{abs(x.imag).max():g}."
        )
    return x.real.copy()
