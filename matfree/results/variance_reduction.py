r"""Variance reduction: an isolated eigenvalue has the mass 1/n, whatever weight a probe gives it.

A random unit vector v gives a simple eigenvalue the weight :math:`|u^H v|^2`, whose mean is 1/n
and whose relative variance is 2. For a spectrum with outliers far from its bulk this is nearly
all of the sampling error. If Lanczos has converged to an isolated eigenvalue, however, its mass
is known, and only the mass of the remaining eigenvalues has to be sampled.

References
----------
R. Bhattacharjee, R. Jayaram, C. Musco, C. Musco, A. Ray (2024), arXiv:2410.21690.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.special

from matfree.protocol import HostArray
from matfree.results.interpretations import NEGLIGIBLE_MASS, converged, significant
from matfree.results.tridiagonal import Quadrature

_SIGNIFICANCE = 0.01
"""The significance level at which the weights reject a multiplicity."""

_MULTIPLICITY_STDERRS = 3.3
"""A multiplicity is accepted if it is the only whole number within this many standard errors."""


class KnownEigenvalue(NamedTuple):
    """An eigenvalue to which every probe has converged, and the index of its node in each."""

    value: float
    multiplicity: int
    certain: bool
    """Whether the weights reject every other multiplicity."""
    indices: tuple[int, ...]


def reduce_variance(
    rules: list[Quadrature], size: int, known: HostArray, rounding: float
) -> tuple[list[Quadrature], HostArray]:
    """Replace the weights of isolated eigenvalues by their exact masses.

    Parameters
    ----------
    rules : the quadratures of the probes
    size : n
    known : eigenvalues whose masses are exact already
    rounding : the rounding error of a node relative to the largest, however small its residual

    Returns
    -------
    The new quadratures, and all eigenvalues whose multiplicity is certain, ascending. Both are
    unchanged if the masses of the eigenvalues that were found do not fit into 1.
    """
    rules = [significant(rule, rounding) for rule in rules]
    found = _common_eigenvalues(rules, size, known, rounding)
    certain = (np.full(e.multiplicity, e.value) for e in found if e.certain)
    remaining = 1 - (len(known) + sum(eigen.multiplicity for eigen in found)) / size
    reduced: list[Quadrature] = []
    for p, rule in enumerate(rules):
        fresh = _reweighted(rule, p, found, size, known, remaining)
        if fresh is None:
            return rules, known
        reduced.append(fresh)
    return reduced, np.sort(np.concatenate((known, *certain)))


def _common_eigenvalues(
    rules: list[Quadrature], size: int, known: HostArray, rounding: float
) -> list[KnownEigenvalue]:
    """The converged nodes that all probes share and whose multiplicity the weights determine."""
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
        # An eigenvalue that one probe did not find has no known mass in that probe.
        if len(indices) < len(rules):
            continue
        total = size * sum(rule.weights[i] for rule, i in zip(rules, indices, strict=True))
        multiplicity, certain = _multiplicity(total, len(rules))
        if multiplicity:
            nodes = [rule.nodes[i] for rule, i in zip(rules, indices, strict=True)]
            found.append(
                KnownEigenvalue(float(np.mean(nodes)), multiplicity, certain, tuple(indices))
            )
    return found


def _multiplicity(total: float, num_probes: int) -> tuple[int, bool]:
    """The multiplicity of an eigenvalue from the sum of n times its weights; 0 if uncertain.

    For multiplicity k the sum is close to chi-squared with k * num_probes degrees of freedom.
    Isolated eigenvalues are usually simple, so multiplicity 1 is assumed unless the weights
    reject it, and it is certain if they reject 2. Any other multiplicity must be the only whole
    number that the weights admit.
    """
    if scipy.special.chdtrc(num_probes, total) > _SIGNIFICANCE:
        return 1, bool(scipy.special.chdtr(2 * num_probes, total) < _SIGNIFICANCE)
    estimate = total / num_probes
    half_width = _MULTIPLICITY_STDERRS * math.sqrt(2 * estimate / num_probes)
    return (round(estimate), True) if half_width < 0.5 else (0, False)


def _reweighted(
    rule: Quadrature,
    probe: int,
    found: list[KnownEigenvalue],
    size: int,
    known: HostArray,
    remaining: float,
) -> Quadrature | None:
    """Set the known masses, and scale the other weights so that the sum is 1."""
    nodes, weights = rule.nodes.copy(), rule.weights.copy()
    rest = ~np.isin(nodes, known)
    for eigen in found:
        index = eigen.indices[probe]
        nodes[index], weights[index] = eigen.value, eigen.multiplicity / size
        rest[index] = False
    left = float(weights[rest].sum())
    if (left > NEGLIGIBLE_MASS) != (remaining > NEGLIGIBLE_MASS):
        return None  # the masses do not add up: an eigenvalue was missed or counted twice
    if left > NEGLIGIBLE_MASS:
        weights[rest] *= remaining / left
    return Quadrature(nodes, weights, rule.residuals)
