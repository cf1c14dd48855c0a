"""Traces of several layers, one row per probe, until all of them are accurate enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from matfree import ConvergenceWarning, Estimate
from matfree.arguments import require_whole
from matfree.errors import warn
from matfree.probes import resolve_seed
from matfree.protocol import HostArray, Seed

_FIRST_ROUND = 16  # probes; fewer give no useful prediction of how many are needed


def sampled_traces(
    traces: Callable[[int, int], Mapping[str, Estimate]], max_probes: int, rtol: float, seed: Seed
) -> list[list[float]]:
    """One list per probe, with the estimates of all layers.

    Parameters
    ----------
    traces : function (number of probes, seed) -> estimates by layer
    max_probes : int
    rtol : float
        The half-width of the 95 % interval of every layer, relative to its trace; 0 for all
        probes.
    seed : int, None or numpy.random.Generator
    """
    require_whole("maxIter", max_probes)
    seeds = np.random.SeedSequence(resolve_seed(seed))
    samples: dict[str, HostArray] = {}
    exact: dict[str, float] = {}
    count, done = max_probes if rtol == 0 else min(max_probes, _FIRST_ROUND), 0
    while True:
        found = traces(count, int(seeds.spawn(1)[0].generate_state(1)[0]))
        done += count
        for name, estimate in found.items():
            if estimate.samples is None:
                exact[name] = float(estimate)
            else:
                samples[name] = np.append(samples.get(name, []), estimate.samples)
        sampled = {name: found[name] for name in found if name not in exact}
        excess = max((_excess(e, samples[name], rtol) for name, e in sampled.items()), default=0.0)
        if done >= max_probes or excess <= 1:
            break
        # The half-width falls with the root of the number; the margin makes a third round rare.
        count = min(max_probes, math.ceil(1.2 * done * min(excess, 1e6) ** 2)) - done
    if rtol > 0 and excess > 1:
        warn(
            f"{max_probes} probes reach a 95 % half-width of {excess * rtol:.2g} relative to the "
            f"trace at the least accurate layer, where {rtol:g} was asked for; raise maxIter, or "
            "loosen tol.",
            ConvergenceWarning,
        )
    length = done if sampled else min(2, max_probes)
    columns = [np.full(length, exact[name]) if name in exact else samples[name] for name in found]
    return [list(map(float, row)) for row in np.stack(columns, axis=1)]


def _excess(estimate: Estimate, samples: HostArray, rtol: float) -> float:
    """The half-width of the interval from all samples, relative to the tolerance."""
    count, value = len(samples), float(np.mean(samples))
    if rtol == 0 or count < 2:
        return math.inf
    stderr = float(np.std(samples, ddof=1)) / math.sqrt(count)
    whole = replace(estimate, value=value, stderr=stderr, degrees_of_freedom=count - 1)
    half = float(whole.half_width())
    return half / (rtol * abs(value)) if value else (math.inf if half else 0.0)
