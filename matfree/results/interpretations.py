r"""The nodes and weights of a quadrature, interpreted as a distribution on the real line.

A Gauss quadrature with m nodes determines the first 2m moments of the measure, but not where
the mass lies between the nodes. Two interpretations are offered:

* "atoms": each weight is a point mass at its node. This is right for isolated eigenvalues.
* "spread": neighbouring nodes i and i + 1 that have not converged share the mass
  min(tau_i, tau_{i+1}), half of it from each node, uniformly over the gap between them. This is
  right for a continuous bulk, where nodes are not eigenvalues but sample the distribution.
  Converged nodes are eigenvalues and remain point masses. If the weight of a node exceeds that
  of its neighbours, the excess remains at the node as well.
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
"""A node counts as an eigenvalue if its residual is at most this fraction of the distance to
the nearest other node. The share of other eigenvalues in its weight is of the order of the
square of that fraction."""

NEGLIGIBLE_MASS = 1e-12
"""A sum of weights that is zero up to rounding."""

_MAX_SPURIOUS = 100.0
"""A node may be caused by rounding if its weight is at most this multiple of the squared
rounding error."""

_POINTLIKE = 1e-3  # a gap narrower than this fraction of the smoothing width is a point


class Pieces(NamedTuple):
    """A distribution that consists of point masses and of uniform densities between them."""

    nodes: HostArray
    """(m,) float64, ascending."""
    atoms: HostArray
    """(m,) the point mass at each node."""
    gaps: HostArray
    """(m - 1,) the mass that is spread uniformly from each node to the next."""


def converged(nodes: HostArray, residuals: HostArray) -> HostArray:
    """Which nodes are eigenvalues: residual <= 1e-3 times the distance to the next node."""
    gaps = np.diff(nodes, prepend=-math.inf, append=math.inf)
    distance = np.minimum(gaps[:-1], gaps[1:])
    if len(nodes) == 1:
        distance = np.zeros(1)  # without another node, only a residual of 0 is conclusive
    return np.asarray(residuals <= CONVERGED * distance)


def significant(rule: Quadrature, rounding: float) -> Quadrature:
    """Merge repeated nodes, and remove nodes that are caused by rounding.

    Once a Krylov space has exhausted the eigenvectors in the start vector, rounding errors
    introduce further copies of multiple eigenvalues, with weights of the order of the squared
    rounding error, and finally repeated nodes. The bounds in ``bands`` hold for the nodes of the
    exact Gauss quadrature only.
    """
    nodes, weights, residuals = rule
    close = rounding * np.abs(nodes).max(initial=0.0)
    # Nodes that agree up to rounding are copies of one eigenvalue; their weights add up.
    starts = np.flatnonzero(np.diff(nodes, prepend=-np.inf) > close)
    weights = np.add.reduceat(weights, starts)
    keep = weights > _MAX_SPURIOUS * rounding**2
    residuals = np.minimum.reduceat(residuals, starts)
    return Quadrature(nodes[starts][keep], weights[keep], residuals[keep])


def as_atoms(nodes: HostArray, weights: HostArray) -> Pieces:
    """The interpretation "atoms": each weight is a point mass at its node."""
    return Pieces(nodes, weights, np.zeros_like(nodes[1:]))


def spread_over_gaps(nodes: HostArray, weights: HostArray, residuals: HostArray) -> Pieces:
    """The interpretation "spread": unconverged neighbours share mass over the gap between them."""
    loose = ~converged(nodes, residuals)
    both = loose[:-1] & loose[1:]
    gaps = np.where(both, np.minimum(weights[:-1], weights[1:]), 0.0)
    # Both neighbours of a gap give half of its mass.
    given = np.concatenate((gaps, [0.0])) + np.concatenate(([0.0], gaps))
    return Pieces(nodes, weights - given / 2, gaps)


def cdf(measures: Sequence[Pieces], points: HostArray) -> HostArray:
    """The distribution function at the points, averaged over the measures."""
    return np.asarray(np.mean([_cdf(measure, points, "right") for measure in measures], axis=0))


def quantile(measures: Sequence[Pieces], q: float) -> float:
    """The smallest point at which the averaged distribution function is at least q."""
    points = np.unique(np.concatenate([measure.nodes for measure in measures]))
    up_to = cdf(measures, points)
    before = np.mean([_cdf(measure, points, "left") for measure in measures], axis=0)
    q -= NEGLIGIBLE_MASS
    first = min(int(np.searchsorted(up_to, q)), points.size - 1)
    if first == 0 or q > before[first]:
        return float(points[first])
    # Between two nodes the distribution function is linear.
    left, low = points[first - 1], up_to[first - 1]
    fraction = (q - low) / (before[first] - low) if before[first] > low else 1.0
    return float(left + max(fraction, 0.0) * (points[first] - left))


def smoothed(measures: Sequence[Pieces], points: HostArray, sigma: float) -> HostArray:
    """The averaged density at the points, convolved with a Gaussian."""
    total = np.zeros(points.shape)
    for nodes, atoms, gaps in measures:
        for node, mass in zip(nodes, atoms, strict=True):
            total += mass * _standard_normal((points - node) / sigma) / sigma
        for j in map(int, np.flatnonzero(gaps)):
            left, right = float(nodes[j]), float(nodes[j + 1])
            total += gaps[j] * _smoothed_box(points, left, right, sigma)
    return total / len(measures)


def _cdf(measure: Pieces, points: HostArray, side: Literal["left", "right"]) -> HostArray:
    nodes, atoms, gaps = measure
    steps = np.concatenate(([0.0], np.cumsum(atoms)))[np.searchsorted(nodes, points, side=side)]
    if not gaps.any():
        return np.asarray(steps)
    ramps = np.interp(points, nodes, np.concatenate(([0.0], np.cumsum(gaps))))
    return np.asarray(steps + ramps)


def _standard_normal(x: HostArray) -> HostArray:
    return np.asarray(np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi))


def _smoothed_box(points: HostArray, left: float, right: float, sigma: float) -> HostArray:
    """The uniform density on [left, right], convolved with a Gaussian."""
    length = right - left
    if length < _POINTLIKE * sigma:  # the difference below would suffer from cancellation
        return _standard_normal((points - (left + right) / 2) / sigma) / sigma
    ends = scipy.special.ndtr((points - left) / sigma) - scipy.special.ndtr(
        (points - right) / sigma
    )
    return np.asarray(ends / length)
