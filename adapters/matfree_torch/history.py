"""Curvature at one checkpoint after another, as a record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np

from matfree.results import Estimate, Record, SpectralDensity
from matfree_torch import pictures

HostArray = np.ndarray[Any, Any]
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
            "eigenvalues": pictures.plot_eigenvalue_history,
            "trace": pictures.plot_trace_history,
            "density": pictures.plot_density_history,
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
