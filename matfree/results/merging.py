"""Checks that results come from one problem and from different probes, before they are merged.

Runs of one method and one seed over different probes of one operator can be merged into the
result of a single run over all of these probes. The functions of this module refuse results for
which that is not true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from matfree.protocol import HostArray
from matfree.results.parts import Sampled, from_samples

ProbeRanges = tuple[tuple[int, int], ...]
"""Ranges of probe numbers, as (first, one past the last)."""

_MAX_STANDARD_ERRORS = 10.0
"""Estimates of one operator differ by more than this many standard errors with a probability of
about 1e-7 (Student's t distribution)."""

_MIN_PROBES = 16
"""Fewer probes may agree by chance, so that their standard error is far too small."""

_RELATIVE_ROUNDING = 1e-4
"""The relative difference that rounding may cause in a low precision."""


class RunOverProbes(Protocol):
    """A result that was computed from ranges of probes."""

    @property
    def probe_ranges(self) -> ProbeRanges:
        """The probes that were used."""


class SampledRun(RunOverProbes, Sampled, Protocol):
    """An estimate with its standard error."""

    @property
    def num_probes(self) -> int:
        """The number of probes."""

    @property
    def num_matvecs(self) -> int:
        """The number of matvecs."""

    @property
    def seed(self) -> int:
        """The seed of the probes."""

    @property
    def converged(self) -> bool:
        """Whether the tolerance was reached."""

    @property
    def bias(self) -> float:
        """A bound on the error that is not a sampling error."""

    @property
    def widening(self) -> float:
        """The factor of the sampling error."""


MergeableRun = TypeVar("MergeableRun", bound=RunOverProbes)


def require_same_setting(name: str, values: list[Any]) -> None:
    """Refuse to merge runs that differ in a setting that all of them must share."""
    if len(set(values)) > 1:
        raise ValueError(
            f"only runs with the same {name} can be merged: got {values}; compute the results "
            "again with one value."
        )


def require_agreement(runs: Sequence[SampledRun]) -> None:
    """Refuse to merge estimates that are too far apart to be estimates of one operator."""
    # The most accurate run is the reference for all others.
    first = max(runs, key=lambda run: run.num_probes)
    for run in runs:
        if run.num_probes < _MIN_PROBES:
            continue
        distance = _two_norm(run.value - first.value)
        stderr = _two_norm(first.stderr, run.stderr)
        if distance > _MAX_STANDARD_ERRORS * stderr + _RELATIVE_ROUNDING * _two_norm(first.value):
            raise ValueError(
                f"the runs over probes {_probe_numbers(first)} and {_probe_numbers(run)} differ by "
                f"{distance:.3g}, which is much more than the standard error of the difference, "
                f"{stderr:.2g}: they are runs of different operators (other weights, other "
                "data?) and cannot be merged; merge results of one operator only."
            )


def joined_ranges(parts: list[ProbeRanges]) -> ProbeRanges:
    """The union of ranges of probe numbers, in order; ValueError if two of them overlap."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(pair for part in parts for pair in part):
        if joined and first < joined[-1][1]:
            raise ValueError(
                f"probes {first} to {min(last, joined[-1][1]) - 1} occur in two of the runs; "
                "merge runs over different probes (first_probe)."
            )
        if joined and first == joined[-1][1]:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return tuple(joined)


def by_first_probe(runs: Sequence[MergeableRun]) -> list[MergeableRun]:
    """The runs sorted by their probes, so that the result does not depend on their order."""
    return sorted(runs, key=lambda run: run.probe_ranges)


def merged(runs: Sequence[SampledRun]) -> dict[str, Any]:
    """The fields of the estimate from the probes of all runs; ValueError if they do not match."""
    for name in ("method", "seed", "kind", "size"):
        require_same_setting(name, [getattr(run, name) for run in runs])
    if not all(run.mergeable for run in runs):
        raise ValueError(
            f"estimates by {runs[0].method!r} cannot be merged, because their probes are not "
            "averaged independently; run it once with more probes."
        )
    ranges = joined_ranges([run.probe_ranges for run in runs])
    require_agreement(runs)
    count = sum(run.num_probes for run in runs)
    return {
        **pooled(runs, count),
        "num_probes": count,
        "num_matvecs": sum(run.num_matvecs for run in runs),
        "converged": all(run.converged for run in runs),
        "reason": f"{len(runs)} runs merged",
        "probe_ranges": ranges,
        # Each run bounds the quadrature error of its own probes.
        "bias": max(run.bias for run in runs),
        "widening": max(run.widening for run in runs),
        "history": (),
    }


def pooled(runs: Sequence[SampledRun], count: int) -> dict[str, Any]:
    """The mean over the probes of all runs with its error, all samples, and all deviations.

    Without samples (diagonals store none) the sum of squared deviations is recovered from the
    standard errors: it is the sum within the runs plus the sum between their means.
    """
    ordered = by_first_probe(runs)
    if all(run.samples is not None for run in runs):
        samples = np.concatenate([run.samples for run in ordered])
        deviations = None
        if all(run.deviations is not None for run in runs):
            deviations = np.concatenate([run.deviations for run in ordered])
        return from_samples(samples, deviations, kind=runs[0].kind, size=runs[0].size)
    value = sum(run.value * (run.num_probes / count) for run in runs)
    squares = sum(_squared_deviations(run, value) for run in runs)
    stderr = (squares / (count * max(count - 1, 1))) ** 0.5 if count > 1 else math.inf
    return {"value": value, "stderr": stderr, "degrees_of_freedom": count - 1, "samples": None}


def _squared_deviations(run: SampledRun, center: Any) -> Any:
    """The sum of squared deviations from ``center`` of the samples of a run."""
    m = run.num_probes
    within = run.stderr**2 * (m * (m - 1)) if m > 1 else 0.0
    return within + m * abs(run.value - center) ** 2


def safe_unit(value: Any) -> float:
    """A power of 2 near a number or the largest entry of an array; 1 if its square is in range."""
    xp = array_namespace(value) if is_array_api_obj(value) else np
    size = float(xp.max(xp.abs(value))) if np.size(value) or is_array_api_obj(value) else 0.0
    return 2.0 ** round(math.log2(size)) if 0 < size < 1e-100 or 1e100 < size < math.inf else 1.0


def spread(samples: HostArray) -> float:
    """The standard deviation of samples of any magnitude; inf for a single sample."""
    unit = safe_unit(samples)
    return unit * float(np.std(samples / unit, ddof=1)) if samples.size > 1 else math.inf


def _two_norm(*arrays: Any) -> float:
    """The 2-norm of numbers or arrays, concatenated."""
    total = 0.0
    for x in arrays:
        squares = abs(x) ** 2
        xp = array_namespace(squares) if is_array_api_obj(squares) else np
        total += float(xp.sum(squares))
    return math.sqrt(total)


def _probe_numbers(run: RunOverProbes) -> str:
    return " and ".join(f"{first} to {last - 1}" for first, last in run.probe_ranges)
