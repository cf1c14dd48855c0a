"""Densities from runs over different probes, put together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from matfree.results.estimate import (
    by_first_probe,
    joined_ranges,
    require_agreement,
    require_same,
)

if TYPE_CHECKING:
    from matfree.results.density import SpectralDensity

_SAME = ("method", "reorthogonalize", "size", "num_steps", "seed", "kind", "epsilon")


def merged(runs: tuple[SpectralDensity, ...]) -> SpectralDensity:
    """One density from runs of one problem, or a ValueError that says why they are not."""
    for name in _SAME:
        require_same(name, [getattr(run, name) for run in runs])
    require_same("set of known eigenvalues", [tuple(run.known.tolist()) for run in runs])
    ranges = joined_ranges([run.probe_ranges for run in runs])
    for power in (1, 2):
        require_agreement([run.moment(power) for run in runs])
    ordered = by_first_probe(runs)
    return replace(
        runs[0],
        nodes=tuple(node for run in ordered for node in run.nodes),
        weights=tuple(weight for run in ordered for weight in run.weights),
        residuals=tuple(residual for run in ordered for residual in run.residuals),
        noise=max(run.noise for run in runs),
        storage_error=max(run.storage_error for run in runs),
        num_matvecs=sum(run.num_matvecs for run in runs),
        probe_ranges=ranges,
        reason=f"{len(runs)} runs merged",
    )
