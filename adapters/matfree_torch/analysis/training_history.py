"""The result of ``follow_training``, and its plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import numpy as np

from matfree.plotting.axes import BLUE, axes_or_new, legend
from matfree.protocol import HostArray
from matfree.results import Estimate, Record, SpectralDensity
from matfree_torch.analysis.landscape_result import COLOUR_MAP, curve_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_IMAGE_HEIGHT = 400  # rows of the density image, four per smoothing width

HistoryPlot: TypeAlias = Literal["eigenvalues", "trace", "density"]


@final
@dataclass(frozen=True, eq=False)
class TrainingHistory(Record):
    """Eigenvalues, traces and spectral densities of a curvature over training checkpoints.

    Examples
    --------
    >>> import copy, torch
    >>> from matfree_torch import follow_training
    >>> model, data = torch.nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1))
    >>> states = (copy.deepcopy(model.state_dict()) for epoch in range(3))
    >>> history = follow_training(model, torch.nn.MSELoss(), data, states, k=1, seed=0)
    >>> history.labels, history.values.round(4).ravel(), len(history.traces)
    ((0, 1, 2), array([3., 3., 3.]), 3)
    >>> ax = history.plot(kind="trace")
    """

    labels: tuple[Any, ...]
    """The labels of the checkpoints, numbers or strings."""
    values: HostArray
    """(checkpoints, k) eigenvalues in the order of ``which``. Missing ones are NaN."""
    residuals: HostArray
    """(checkpoints, k) residuals ||A u - theta u|| relative to ``norms``."""
    converged: HostArray
    """(checkpoints, k) bool, whether the residual met the tolerance."""
    norms: HostArray
    """(checkpoints,) estimates of ||A||."""
    overlaps: HostArray
    """(checkpoints, k) overlaps with the previous checkpoint, between 0 and 1.

    The overlap of an eigenvector is the norm of its projection on the span of the previous
    eigenvectors. It is NaN for the first checkpoint.
    """
    eigen_matvecs: HostArray
    """(checkpoints,) the number of matvecs for the eigenpairs."""
    trace_samples: HostArray
    """(checkpoints, probes) the quadratic forms w^T A w of the probes w.

    The probes are the same at every checkpoint, so differences between checkpoints are more
    accurate than the traces themselves.
    """
    nodes: tuple[HostArray, ...]
    """The quadrature nodes of the densities, ordered by checkpoint and then by probe."""
    weights: tuple[HostArray, ...]
    """The quadrature weights of the densities, in the same order."""
    num_steps: int
    """The number of Lanczos steps per probe of the densities."""
    num_matvecs: int
    """The total number of matvecs."""
    which: str
    """The order of the eigenvalues: "LM" is by decreasing magnitude."""
    size: int
    """The size n of the operator."""
    epsilon: float
    """The machine epsilon of the data type of the vectors."""
    seed: int
    """The seed that reproduces this run."""

    @property
    def traces(self) -> tuple[Estimate, ...]:
        """The trace at every checkpoint. Empty if it was not requested."""
        count = self.trace_samples.shape[1]
        return tuple(self._trace(samples) for samples in self.trace_samples) if count else ()

    @property
    def densities(self) -> tuple[SpectralDensity, ...]:
        """The spectral density at every checkpoint. Empty if it was not requested."""
        count = len(self.nodes) // len(self.labels)
        probes = [slice(j * count, (j + 1) * count) for j in range(len(self.labels))]
        return tuple(map(self._density, probes)) if count else ()

    def plot(self, ax: Any = None, kind: HistoryPlot = "eigenvalues") -> Any:
        """Plot the history on matplotlib Axes and return them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The Axes of a new figure by default.
        kind : {"eigenvalues", "trace", "density"}
            The eigenvalues with error bars from their residuals, the trace with its 95 %
            interval, or the density as an image with one column per checkpoint.

        Raises
        ------
        ValueError
            The kind is unknown, or the history does not hold the quantity.
        """
        draw = {
            "eigenvalues": plot_eigenvalue_history,
            "trace": plot_trace_history,
            "density": plot_density_history,
        }
        if kind not in draw:
            known = ", ".join(map(repr, draw))
            raise ValueError(f"kind must be one of {known}: got {kind!r}.")
        if kind == "trace" and not self.traces:
            raise ValueError("the history holds no traces; follow the training with num_probes=16.")
        if kind == "density" and not self.densities:
            raise ValueError(
                "the history holds no densities; follow the training with density_probes=4."
            )
        return draw[kind](self, ax=ax)

    def _trace(self, samples: HostArray) -> Estimate:
        count = samples.size
        spread = float(samples.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        return Estimate(
            value=float(samples.mean()),
            stderr=spread,
            method="hutchinson",
            num_probes=count,
            num_matvecs=count,
            degrees_of_freedom=count - 1,
            converged=True,
            reason=f"all {count} probes done",
            seed=self.seed,
            size=self.size,
            mergeable=True,
            samples=samples,
            probe_ranges=((0, count),),
        )

    def _density(self, probes: slice) -> SpectralDensity:
        nodes = self.nodes[probes]
        return SpectralDensity(
            nodes=nodes,
            weights=self.weights[probes],
            size=self.size,
            num_steps=self.num_steps,
            num_matvecs=sum(node.size for node in nodes),
            epsilon=self.epsilon,
            seed=self.seed,
            probe_ranges=((0, len(nodes)),),
        )

    def _rows(self) -> list[tuple[str, str]]:
        count, k = self.values.shape
        missed = int((~self.converged).sum())
        first, last = self.values[0], self.values[-1]
        rows = [("checkpoints", f"{count}, {self.labels[0]} to {self.labels[-1]}")]
        rows += [
            (
                f"eigenvalue {j + 1}",
                f"{first[j]:.6g} at the first checkpoint, {last[j]:.6g} at the last",
            )
            for j in range(k)
        ]
        rows += [("residuals", f"at most {np.nanmax(self.residuals):.1e}, {missed} not converged")]
        for name, estimates in (("first", self.traces[:1]), ("last", self.traces[-1:])):
            for e in estimates:
                rows.append((f"{name} trace", f"{e.value:.6g} +- {e.half_width():.2g}"))
        return [
            *rows,
            ("densities", f"{len(self.nodes)} probes in total"),
            ("cost", f"{self.num_matvecs} matvecs, {int(self.eigen_matvecs.sum())} for eigenpairs"),
            ("seed", str(self.seed)),
        ]


def plot_eigenvalue_history(history: TrainingHistory, *, ax: Axes | None = None) -> Axes:
    """Plot the eigenvalues over checkpoints, with error bounds from the residuals.

    Parameters
    ----------
    history : TrainingHistory
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x = _checkpoint_positions(ax, history.labels)
    # A symmetric matrix has an eigenvalue within ||A u - theta u|| of theta.
    bounds = history.residuals * history.norms[:, None]
    for j, (values, half) in enumerate(zip(history.values.T, bounds.T, strict=True)):
        style = curve_style(j)
        ax.errorbar(x, values, half, marker=".", capsize=2, label=f"eigenvalue {j + 1}", **style)
    ax.set_ylabel("eigenvalue")
    legend(ax)
    return ax


def plot_trace_history(history: TrainingHistory, *, ax: Axes | None = None) -> Axes:
    """Plot the trace over checkpoints with its 95 % interval.

    Parameters
    ----------
    history : TrainingHistory with traces
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x = _checkpoint_positions(ax, history.labels)
    estimates = history.traces
    half = np.asarray([float(estimate.half_width()) for estimate in estimates])
    value = np.asarray([float(estimate) for estimate in estimates])
    inside = np.where(np.isfinite(half), half, 0.0)  # a single probe has no interval
    ax.fill_between(x, value - inside, value + inside, color=BLUE, alpha=0.3, linewidth=0)
    ax.plot(x, value, marker=".", color=BLUE, label="trace, 95 % interval")
    ax.set_ylabel("trace")
    legend(ax)
    return ax


def plot_density_history(history: TrainingHistory, *, ax: Axes | None = None) -> Axes:
    """Plot the spectral density as an image on a logarithmic scale, one column per checkpoint.

    Parameters
    ----------
    history : TrainingHistory with densities
    ax : matplotlib Axes, optional

    Returns
    -------
    The Axes drawn on.
    """
    ax = axes_or_new(ax)
    x, densities = _checkpoint_positions(ax, history.labels), history.densities
    low = min(density.support[0] for density in densities)
    high = max(density.support[1] for density in densities)
    sigma = 0.01 * ((high - low) or max(abs(low), abs(high)) or 1.0)  # the same for all columns
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, _IMAGE_HEIGHT + 1)
    columns = [_smoothed(density, (edges[1:] + edges[:-1]) / 2, sigma) for density in densities]
    # A tenth of the peak of a single eigenvalue, 1 / (n sigma sqrt(2 pi)), is the floor.
    floor = 0.1 / (history.size * sigma * 2.5)
    image = np.log10(np.maximum(np.stack(columns, axis=1), floor))
    mesh = ax.pcolormesh(_column_edges(x), edges, image, cmap=COLOUR_MAP, rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="log10 of the density")
    ax.set_ylabel("eigenvalue")
    return ax


def _checkpoint_positions(ax: Axes, labels: Sequence[Any]) -> HostArray:
    """The coordinates of the checkpoints: their labels if all are numbers, else their numbers."""
    ax.set_xlabel("checkpoint")
    if all(isinstance(label, int | float) for label in labels):
        return np.asarray(labels, dtype=np.float64)
    x = np.arange(len(labels), dtype=np.float64)
    ax.set_xticks(x, list(map(str, labels)))
    return x


def _column_edges(x: HostArray) -> HostArray:
    """The edges of the image columns of checkpoints at x, halfway between neighbours."""
    if x.size == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate(([2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]))


def _smoothed(density: SpectralDensity, grid: HostArray, sigma: float) -> HostArray:
    """The density smoothed with the absolute width sigma."""
    low, high = density.support
    reach = (high - low) or max(abs(low), abs(high)) or 1.0
    smoothed: HostArray = density.density(
        grid, sigma / reach
    )  # takes the width relative to the range
    return smoothed
