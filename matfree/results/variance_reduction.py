r"""Weights without chance: an isolated eigenvalue has the mass 1/n, whatever a probe saw.

A random vector sees a simple eigenvalue with the weight |u^H v|^2, which is 1/n in the mean
and has a relative variance of 2. For a spectrum with outliers far from its bulk that is
nearly all of the error. But where Lanczos has converged to an eigenvalue that stands
alone, its mass is known, and only the rest needs sampling.

References
----------
R. Bhattacharjee, R. Jayaram, C. Musco, C. Musco, A. Ray (2024), arXiv:2410.21690.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.stats

from matfree.protocol import HostArray
from matfree.results.interpretations import converged, significant
from matfree.results.tridiagonal import Quadrature

_UNLIKELY = 0.01
"""The chance at which weights contradict a multiplicity."""

_CERTAIN = 3.3
"""Standard errors within which a multiplicity must be the only whole number."""

_NOTHING = 1e-12  # a sum of weights that is rounding


class Known(NamedTuple):
    """An eigenvalue that every probe has found, and its node in each of them."""

    value: float
    multiplicity: int
    certain: bool
    """Whether no other multiplicity would do."""
    indices: tuple[int, ...]


def reduce_variance(
    rules: list[Quadrature], size: int, known: HostArray, rounding: float
) -> tuple[list[Quadrature], HostArray]:
    """The rules with the masses put in, and all eigenvalues that are known for certain.

    Parameters
    ----------
    rules : the probes' quadratures
    size : n
    known : eigenvalues whose masses are exact already
    rounding : what a node may be off by relative to the largest, however small its residual
    """
    rules = [significant(rule, rounding) for rule in rules]
    found = _common_eigenvalues(rules, size, known, rounding)
    certain = (np.full(e.multiplicity, e.value) for e in found if e.certain)
    target = 1 - (len(known) + sum(eigen.multiplicity for eigen in found)) / size
    reduced: list[Quadrature] = []
    for p, rule in enumerate(rules):
        fresh = _reweighted(rule, p, found, size, known, target)
        if fresh is None:
            return rules, known
        reduced.append(fresh)
    return reduced, np.sort(np.concatenate((known, *certain)))


def _common_eigenvalues(
    rules: list[Quadrature], size: int, known: HostArray, rounding: float
) -> list[Known]:
    """Converged nodes that all probes share, as far as their multiplicity is certain."""
    rounding *= max(float(np.abs(rule.nodes).max()) for rule in rules)
    settled = [
        np.flatnonzero(converged(rule.nodes, rule.residuals) & ~np.isin(rule.nodes, known))
        for rule in rules
    ]
    found = []
    for index in settled[0] if all(map(len, settled)) else ():
        indices = [int(index)]
        value, residual = rules[0].nodes[index], rules[0].residuals[index]
        for rule, candidates in zip(rules[1:], settled[1:], strict=True):
            nearest = int(candidates[np.argmin(np.abs(rule.nodes[candidates] - value))])
            if abs(rule.nodes[nearest] - value) <= residual + rule.residuals[nearest] + rounding:
                indices.append(nearest)
        if len(indices) < len(rules):
            continue
        seen = size * sum(rule.weights[i] for rule, i in zip(rules, indices, strict=True))
        multiplicity, certain = _multiplicity(seen, len(rules))
        if multiplicity:
            nodes = [rule.nodes[i] for rule, i in zip(rules, indices, strict=True)]
            found.append(Known(float(np.mean(nodes)), multiplicity, certain, tuple(indices)))
    return found


def _multiplicity(seen: float, num_probes: int) -> tuple[int, bool]:
    """How many eigenvalues sit there, from the sum of n times the weights; 0 if uncertain.

    For multiplicity k the sum is close to chi-squared with k * num_probes degrees of
    freedom. Isolated eigenvalues are simple as a rule, so that is believed unless the
    weights say otherwise, and is certain where they contradict two; another number must
    be the only one that they allow.
    """
    if scipy.stats.chi2.sf(seen, num_probes) > _UNLIKELY:
        return 1, bool(scipy.stats.chi2.cdf(seen, 2 * num_probes) < _UNLIKELY)
    estimate = seen / num_probes
    unsure = _CERTAIN * math.sqrt(2 * estimate / num_probes)
    return (round(estimate), True) if unsure < 0.5 else (0, False)


def _reweighted(
    rule: Quadrature, probe: int, found: list[Known], size: int, known: HostArray, target: float
) -> Quadrature | None:
    """Known masses in their places, the rest of the weights scaled to what they leave."""
    nodes, weights = rule.nodes.copy(), rule.weights.copy()
    rest = ~np.isin(nodes, known)
    for eigen in found:
        index = eigen.indices[probe]
        nodes[index], weights[index] = eigen.value, eigen.multiplicity / size
        rest[index] = False
    left = float(weights[rest].sum())
    if (left > _NOTHING) != (target > _NOTHING):
        return None  # the masses do not add up: there is more, or less, than was found
    if left > _NOTHING:
        weights[rest] *= target / left
    return Quadrature(nodes, weights, rule.residuals)
