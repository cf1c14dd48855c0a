r"""Nodes and weights read as a distribution on the line.

A quadrature of m nodes knows the measure's first 2m moments, not where between the nodes
the mass lies. Two readings are offered:

* atoms: each weight sits on its node. Right for eigenvalues that stand alone.
* spread: neighbouring nodes i, i + 1 that have not converged share min(tau_i, tau_{i+1}),
  half from each, uniformly over the gap between them. Right for a continuous bulk, of
  which the nodes are samples and not members. Converged nodes are eigenvalues and stay
  atoms, and so does what a heavy node has in excess of its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.special

from matfree.protocol import HostArray
from matfree.results.tridiagonal import Quadrature

Reading: TypeAlias = Literal["atoms", "spread"]

CONVERGED = 1e-3
"""The residual, relative to the distance to the nearest other node, at which a node is an
eigenvalue: what it still holds of the others is the square of that."""

_MADE_BY_ROUNDING = 100.0
"""The weight up to which a node may be rounding, relative to the square of that."""

_POINTLIKE = 1e-3  # widths of the smoothing below which a gap looks like a point


class Pieces(NamedTuple):
    """A distribution made of atoms and of uniform pieces between them."""

    nodes: HostArray
    """(m,) float64, ascending."""
    atoms: HostArray
    """(m,) the mass that sits on each node."""
    gaps: HostArray
    """(m - 1,) the mass spread uniformly from each node to the next."""


def converged(nodes: HostArray, residuals: HostArray) -> HostArray:
    """Which nodes are eigenvalues: residuals within 1e-3 of the distance to the next node."""
    gaps = np.diff(nodes, prepend=-math.inf, append=math.inf)
    distance = np.minimum(gaps[:-1], gaps[1:])
    if len(nodes) == 1:
        distance = np.zeros(1)  # nothing to compare with: it is one where its residual is 0
    return np.asarray(residuals <= CONVERGED * distance)


def significant(rule: Quadrature, rounding: float) -> Quadrature:
    """The quadrature without the nodes that rounding has made.

    Where an eigenvalue is multiple, rounding brings further copies of it into a Krylov
    space that has been through all the rest: with weights of its square, and in the end at
    the same place. The bounds are for nodes that the measure has.
    """
    nodes, weights, residuals = rule
    close = rounding * np.abs(nodes).max(initial=0.0)
    starts = np.flatnonzero(np.diff(nodes, prepend=-np.inf) > close)
    weights = np.add.reduceat(weights, starts)
    keep = weights > _MADE_BY_ROUNDING * rounding**2
    residuals = np.minimum.reduceat(residuals, starts)
    return Quadrature(nodes[starts][keep], weights[keep], residuals[keep])


def as_atoms(nodes: HostArray, weights: HostArray) -> Pieces:
    """Each weight on its node."""
    return Pieces(nodes, weights, np.zeros_like(nodes[1:]))


def spread(nodes: HostArray, weights: HostArray, residuals: HostArray) -> Pieces:
    """Neighbours that have not converged share their weights over the gap between them."""
    loose = ~converged(nodes, residuals)
    both = loose[:-1] & loose[1:]
    gaps = np.where(both, np.minimum(weights[:-1], weights[1:]), 0.0)
    given = np.concatenate((gaps, [0.0])) + np.concatenate(([0.0], gaps))
    return Pieces(nodes, weights - given / 2, gaps)


def cdf(measures: Sequence[Pieces], points: HostArray) -> HostArray:
    """The mean mass at or below the points."""
    return np.asarray(np.mean([_cdf(measure, points, "right") for measure in measures], axis=0))


def quantile(measures: Sequence[Pieces], q: float) -> float:
    """The least point with at least the fraction q of the mean mass at or below it."""
    points = np.unique(np.concatenate([measure.nodes for measure in measures]))
    up_to = cdf(measures, points)
    before = np.mean([_cdf(measure, points, "left") for measure in measures], axis=0)
    q -= 1e-12  # sums of weights are rounded
    first = min(int(np.searchsorted(up_to, q)), points.size - 1)
    if first == 0 or q > before[first]:
        return float(points[first])
    left, low = points[first - 1], up_to[first - 1]  # between two nodes the mass is linear
    part = (q - low) / (before[first] - low) if before[first] > low else 1.0
    return float(left + max(part, 0.0) * (points[first] - left))


def smoothed(measures: Sequence[Pieces], points: HostArray, sigma: float) -> HostArray:
    """The mean density at the points after convolution with a Gaussian."""
    total = np.zeros(points.shape)
    for nodes, atoms, gaps in measures:
        for node, mass in zip(nodes, atoms, strict=True):
            total += mass * _gaussian((points - node) / sigma) / sigma
        for j in map(int, np.flatnonzero(gaps)):
            left, right = float(nodes[j]), float(nodes[j + 1])
            total += gaps[j] * _box(points, left, right, sigma)
    return total / len(measures)


def _cdf(measure: Pieces, points: HostArray, side: Literal["left", "right"]) -> HostArray:
    nodes, atoms, gaps = measure
    steps = np.concatenate(([0.0], np.cumsum(atoms)))[np.searchsorted(nodes, points, side=side)]
    if not gaps.any():
        return np.asarray(steps)
    ramps = np.interp(points, nodes, np.concatenate(([0.0], np.cumsum(gaps))))
    return np.asarray(steps + ramps)


def _gaussian(x: HostArray) -> HostArray:
    return np.asarray(np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi))


def _box(points: HostArray, left: float, right: float, sigma: float) -> HostArray:
    """The uniform density on [left, right], smoothed."""
    length = right - left
    if length < _POINTLIKE * sigma:  # the difference below would cancel
        return _gaussian((points - (left + right) / 2) / sigma) / sigma
    ends = scipy.special.ndtr((points - left) / sigma) - scipy.special.ndtr(
        (points - right) / sigma
    )
    return np.asarray(ends / length)
