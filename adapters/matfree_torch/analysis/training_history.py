"""Curvature at one checkpoint after another, as a record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import numpy as np

from matfree.plotting.axes import BLUE, axes_or_new, legend
from matfree.protocol import HostArray
from matfree.results import Estimate, Record, SpectralDensity
from matfree_torch.analysis.landscape_result import COLOUR_MAP, curve_style, positions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS = 400  # of the density image: four for each smoothing width

HistoryPicture: TypeAlias = Literal["eigenvalues", "trace", "density"]


@final
@dataclass(frozen=True, eq=False)
class TrainingHistory(Record):
    """Eigenvalues, traces and densities of a curvature over checkpoints of a training.

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
    """Of the checkpoints: numbers or strings."""
    values: HostArray
    """(checkpoints, k) eigenvalues, in the order of ``which``; NaN where one is missing."""
    residuals: HostArray
    """(checkpoints, k) ||A u - theta u|| relative to ``norms``."""
    converged: HostArray
    """(checkpoints, k) bool: whether the residual met the tolerance."""
    norms: HostArray
    """(checkpoints,) estimates of ||A||."""
    overlaps: HostArray
    """(checkpoints, k) how much of each eigenvector lies in the span of those of the
    checkpoint before, 0 to 1; NaN for the first."""
    eigen_matvecs: HostArray
    """(checkpoints,) products that the eigenpairs took."""
    trace_samples: HostArray
    """(checkpoints, probes) w^T A w, the same probes at every checkpoint, so that differences
    between checkpoints are known better than the traces themselves."""
    nodes: tuple[HostArray, ...]
    """Of the densities' quadratures: checkpoint by checkpoint, probe by probe."""
    weights: tuple[HostArray, ...]
    num_steps: int
    """Lanczos steps a probe of the densities."""
    num_matvecs: int
    """Products of the operator with one vector, everything counted."""
    which: str
    """The eigenvalues' order: "LM" by largest magnitude."""
    size: int
    """n of the operator."""
    epsilon: float
    """The relative spacing of the vectors' data type."""
    seed: int
    """The seed that repeats this run."""

    @property
    def traces(self) -> tuple[Estimate, ...]:
        """The trace at every checkpoint; empty where it was not asked for."""
        count = self.trace_samples.shape[1]
        return tuple(self._trace(samples) for samples in self.trace_samples) if count else ()

    @property
    def densities(self) -> tuple[SpectralDensity, ...]:
        """The spectral density at every checkpoint; empty where it was not asked for."""
        count = len(self.nodes) // len(self.labels)
        parts = [slice(j * count, (j + 1) * count) for j in range(len(self.labels))]
        return tuple(self._density(part) for part in parts) if count else ()

    def plot(self, ax: Any = None, kind: HistoryPicture = "eigenvalues") -> Any:
        """Draw it on matplotlib Axes and return them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            A new figure by default.
        kind : {"eigenvalues", "trace", "density"}
            Eigenvalues with bars of their residuals, the trace with its 95 % interval, or the
            density as one column a checkpoint.

        Raises
        ------
        ValueError
            The kind is unknown, or was not asked for when the history was made.
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
            raise ValueError("there are no traces in this history; follow with num_probes=16.")
        if kind == "density" and not self.densities:
            raise ValueError("there are no densities here; follow with density_probes=4.")
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

    def _density(self, part: slice) -> SpectralDensity:
        nodes = self.nodes[part]
        return SpectralDensity(
            nodes=nodes,
            weights=self.weights[part],
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
            (f"eigenvalue {j + 1}", f"{first[j]:.6g} at first, {last[j]:.6g} at last")
            for j in range(k)
        ]
        rows += [("residuals", f"at most {np.nanmax(self.residuals):.1e}, {missed} not converged")]
        for name, estimates in (("at first", self.traces[:1]), ("at last", self.traces[-1:])):
            for e in estimates:
                rows.append((f"trace {name}", f"{e.value:.6g} +- {e.half_width():.2g}"))
        return [
            *rows,
            ("densities", f"{len(self.nodes)} probes in all"),
            ("cost", f"{self.num_matvecs} products, {int(self.eigen_matvecs.sum())} on pairs"),
            ("seed", str(self.seed)),
        ]


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
    x = positions(ax, history.labels)
    reach = history.residuals * history.norms[:, None]
    for j, (values, half) in enumerate(zip(history.values.T, reach.T, strict=True)):
        style = curve_style(j)
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
    x = positions(ax, history.labels)
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
    x, densities = positions(ax, history.labels), history.densities
    low = min(density.support[0] for density in densities)
    high = max(density.support[1] for density in densities)
    sigma = 0.01 * ((high - low) or max(abs(low), abs(high)) or 1.0)  # one for all columns
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, _ROWS + 1)
    columns = [_smoothed(density, (edges[1:] + edges[:-1]) / 2, sigma) for density in densities]
    image = np.log10(np.maximum(np.stack(columns, axis=1), 0.1 / (history.size * sigma * 2.5)))
    mesh = ax.pcolormesh(_edges(x), edges, image, cmap=COLOUR_MAP, rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="log10 of the density")
    ax.set_ylabel("eigenvalue")
    return ax


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
