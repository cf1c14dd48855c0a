r"""Error bounds for spectral distributions: resolution error and sampling error.

**Resolution.** Let theta_1 < theta_2 < ... be the nodes of a Gauss quadrature and c_i the sum
of its first i weights. The distribution function Psi of the spectral measure of the probe
satisfies the Markov-Stieltjes inequalities

.. math:: c_{i-1} \le \Psi(\theta_i -) \le \Psi(\theta_i) \le c_i,

so that between two nodes it is known up to the weights of both. In a region without mass it is
known more accurately. The distribution functions of all measures with the same moments, the
quadrature among them, differ at x by at most the Christoffel function

.. math:: \rho(x) = \frac{1}{\sum_{j < m} p_j(x)^2} = \frac{1}{\sum_i \ell_i(x)^2 / \tau_i}

(p_j the orthonormal polynomials, l_i the Lagrange polynomials of the nodes, tau_i the weights).
It decreases exponentially with m inside a gap of the spectrum, and also next to an isolated
eigenvalue. The smaller of the two bounds is used. If Lanczos broke down, the quadrature is the
spectral measure of the probe, and there is no resolution error.

**Sampling.** See ``matfree.results.error_model``.

References
----------
The inequalities: N. I. Akhiezer (1965), The classical moment problem. For Lanczos: T. Chen, T.
Trogdon, S. Ubaru (2021), arXiv:2105.06595.

"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.special

from matfree.arguments import spectral_values
from matfree.protocol import HostArray
from matfree.results.error_model import CONTINUOUS, ErrorModel
from matfree.results.interpretations import (
    NEGLIGIBLE_MASS,
    Pieces,
    as_atoms,
    converged,
    significant,
    smoothed,
)
from matfree.results.intervals import require_level, student_quantile
from matfree.results.tridiagonal import Quadrature

Side = Literal["left", "right"]

KERNEL_TAIL = 6e-3
"""The fraction of the mass of a Jackson kernel that lies more than three kernel widths to one side.
The residuals of a quadrature from ``matfree.algorithms.spectra.kpm`` are three kernel widths."""

_TINY = np.finfo(float).tiny


class IntervalMass(NamedTuple):
    """The mass of an interval: the mean of ``samples`` +- (z stderr + bias) contains it."""

    stderr: float
    bias: float
    """The resolution error, and the distance of the interval's centre from the mean."""
    samples: HostArray
    """(probes,)"""
    limits: tuple[float, float]
    """What follows from the known eigenvalues alone."""


def node_rounding(rules: list[Quadrature], model: ErrorModel) -> float:
    """The rounding error of the nodes, in units of the eigenvalues."""
    return model.rounding * max(float(np.abs(nodes).max(initial=0.0)) for nodes, _, _ in rules)


def interval_mass(
    rules: list[Quadrature], model: ErrorModel, low: float, high: float, side: Side
) -> IntervalMass:
    """The mass from ``low`` (included) to ``high`` (included if ``side`` is "right").

    An end that is included is moved outwards by the rounding error, and one that is not is
    moved inwards, because an eigenvalue 2 may be computed as 2 + 1e-15.
    """
    slack = node_rounding(rules, model)
    low, high = low - slack, high - slack if side == "left" else high + slack
    below = np.less if side == "left" else np.less_equal
    inside = [(low <= nodes) & below(nodes, high) for nodes, _, _ in rules]
    samples = np.asarray(
        [rule.weights[mask].sum() for rule, mask in zip(rules, inside, strict=True)]
    )
    least, most = _brackets(rules, np.asarray(high), side, model)
    least_before, most_before = _brackets(rules, np.asarray(low), "left", model)
    lowest, highest = np.maximum(least - most_before, 0.0), np.minimum(most - least_before, 1.0)
    ends = np.asarray((lowest.mean(), highest.mean()))
    num_known = int(np.sum((low <= model.known) & below(model.known, high)))
    limits = num_known / model.size, 1 - (len(model.known) - num_known) / model.size
    if low == -math.inf and high == math.inf:  # whatever the probes are
        return IntervalMass(0.0, abs(float(samples.mean()) - 1), samples, (0.0, 1.0))
    centres, stderrs = model.proportion(ends, num_known, student_quantile(0.95, math.inf))
    value = float(samples.mean())
    # The interval need not be symmetric around the mean; its larger side becomes the bias.
    bias = max(value - float(centres[0]), float(centres[1]) - value, 0.0)
    return IntervalMass(float(stderrs.max()), bias, samples, limits)


def cdf_band(
    rules: list[Quadrature], model: ErrorModel, points: HostArray, level: float
) -> tuple[HostArray, HostArray]:
    """Bounds that contain the distribution function at each of the points.

    Nodes that exceed a point by no more than their rounding error count as at the point.
    """
    require_level(level)
    z = student_quantile(level, math.inf)
    points = points + node_rounding(rules, model)
    num_known = np.searchsorted(model.known, points, side="right")
    low, high = (np.mean(bound, axis=0) for bound in _brackets(rules, points, "right", model))
    below, stderr_below = model.proportion(low, num_known, z)
    above, stderr_above = model.proportion(high, num_known, z)
    return np.maximum(below - z * stderr_below, 0.0), np.minimum(above + z * stderr_above, 1.0)


def density_band(
    measures: Sequence[Pieces], model: ErrorModel, points: HostArray, sigma: float, level: float
) -> tuple[HostArray, HostArray]:
    r"""Bounds that contain the density, smoothed by sigma, at each of the points.

    With K the Gaussian around a point, the density is t = tr K(A) / n. Its estimate has the
    variance (tr K(A)^2 / n) / trials = c t / trials, with the effective sample size ``trials`` and
    the ratio c = tr K(A)^2 / tr K(A), which is replaced by its estimate. The inequality

    .. math:: |\hat t - t| \le z \sqrt{c \, t / \mathrm{trials}}

    is solved for t (Wilson's interval). As random signs may all miss an eigenvalue, their upper
    bound is at least that for an estimate 0 with the largest possible c, the maximum of K.
    """
    require_level(level)
    z, size = student_quantile(level, math.inf), model.size
    known = [as_atoms(np.sort(model.known), np.full(len(model.known), 1 / size))]
    exact, exact_squared = _with_square(known, points, sigma)
    sampled, squared = _with_square(measures, points, sigma)
    sampled, squared = np.maximum(sampled - exact, 0.0), np.maximum(squared - exact_squared, 0.0)
    nonzero = sampled > np.maximum(NEGLIGIBLE_MASS * exact, _TINY)  # larger than rounding errors
    ratio = np.divide(squared, sampled, out=np.zeros_like(sampled), where=nonzero)
    shift = z**2 * ratio / max(model.normal_trials, _TINY) / 2
    half_width = np.sqrt(shift * (2 * sampled + shift))
    most = sampled + shift + half_width
    if model.kind not in CONTINUOUS and model.sampled_fraction > 0:
        most = np.maximum(most, z**2 / (math.sqrt(2 * math.pi) * sigma * model.trials))
    return exact + sampled + shift - half_width, exact + most


def variation_error(
    rules: list[Quadrature], model: ErrorModel, f: Callable[[HostArray], HostArray]
) -> float:
    r"""A bound on the error of the mean quadrature of f, per eigenvalue.

    By integration by parts, with the distribution functions of the measure and the quadrature,

    .. math:: \Bigl|\int f \, d(\Psi - \hat\Psi)\Bigr| \le \int |\Psi - \hat\Psi| \, |df|.
    """
    points = np.unique(np.concatenate([rule.nodes for rule in rules]))
    steps = np.abs(np.diff(spectral_values(f, points)))
    estimate = np.mean([_mass(points, rule.nodes, rule.weights, "right") for rule in rules], axis=0)
    low, high = (np.mean(bound, axis=0) for bound in _brackets(rules, points, "right", model))
    errors = np.maximum(high - estimate, estimate - low)
    return float(np.sum(steps * np.maximum(errors[:-1], errors[1:])))


def bracket(
    points: HostArray, rule: Quadrature, side: Side, model: ErrorModel
) -> tuple[HostArray, HostArray]:
    """Bounds on the mass at or below the points (``side="left"``: below them) for one probe."""
    # The kernel moves mass by at most three of its widths (the residual), except for its tails.
    if not model.gauss:
        low = _mass(points, rule.nodes + rule.residuals, rule.weights, side)
        high = _mass(points, rule.nodes - rule.residuals, rule.weights, side)
        return np.maximum(low - KERNEL_TAIL, 0.0), np.minimum(high / (1 - KERNEL_TAIL), 1.0)
    nodes, weights, residuals = significant(rule, model.rounding)
    exact = residuals == 0
    if converged(nodes, residuals).all():  # up to rounding, the nodes are all eigenvalues
        exact = np.ones(len(nodes), dtype=bool)
    atoms = _mass(points, nodes[exact], weights[exact], side)
    unconverged_nodes, weights = nodes[~exact], weights[~exact]
    # With j nodes at or below the point, the mass is in [c_{j-1}, c_{j+1}] (Markov-Stieltjes)
    # and within rho of c_j (Christoffel).
    mass = np.concatenate(([0.0], np.cumsum(weights)))
    j = np.searchsorted(unconverged_nodes, points, side=side)
    slack = christoffel(points, unconverged_nodes, weights) if model.orthogonal else np.inf
    least = np.maximum(mass[np.maximum(j - 1, 0)], mass[j] - slack)
    most = np.minimum(mass[np.minimum(j + 1, unconverged_nodes.size)], mass[j] + slack)
    # At +-infinity the mass is known, whatever the nodes are.
    everything, nothing = points == np.inf, points == -np.inf
    return (
        atoms + np.where(everything, mass[-1], least),
        atoms + np.where(nothing, 0.0, most),
    )


def christoffel(points: HostArray, nodes: HostArray, weights: HostArray) -> HostArray:
    """The Christoffel function rho(x) = 1 / sum_i l_i(x)^2 / tau_i of a Gauss quadrature.

    Logarithms are summed, because the products over the nodes overflow and underflow.
    """
    if not nodes.size:
        return np.zeros(np.shape(points))
    margin = 10 * (nodes[-1] - nodes[0]) + 1e-3 * np.abs(nodes).max()
    points = np.clip(points, nodes[0] - margin, nodes[-1] + margin)  # rho decreases outside
    node_gaps = np.log(np.maximum(np.abs(nodes[:, None] - nodes), _TINY))
    np.fill_diagonal(node_gaps, 0.0)
    point_gaps = np.log(np.maximum(np.abs(points[..., None] - nodes), _TINY))
    lagrange = point_gaps.sum(axis=-1, keepdims=True) - point_gaps - node_gaps.sum(axis=0)
    return np.asarray(np.exp(-scipy.special.logsumexp(2 * lagrange - np.log(weights), axis=-1)))


def _brackets(
    rules: list[Quadrature], points: HostArray, side: Side, model: ErrorModel
) -> tuple[HostArray, HostArray]:
    """``bracket`` for every probe, (probes, ...)."""
    bounds = [bracket(points, rule, side, model) for rule in rules]
    return np.stack([low for low, _ in bounds]), np.stack([high for _, high in bounds])


def _with_square(
    measures: Sequence[Pieces], points: HostArray, sigma: float
) -> tuple[HostArray, HostArray]:
    """The means of the Gaussian around each point and of its square, a narrower Gaussian."""
    narrow = smoothed(measures, points, sigma / math.sqrt(2))
    return smoothed(measures, points, sigma), narrow / (2 * math.sqrt(math.pi) * sigma)


def _mass(points: HostArray, nodes: HostArray, weights: HostArray, side: Side) -> HostArray:
    order = np.argsort(nodes, kind="stable")
    mass = np.concatenate(([0.0], np.cumsum(weights[order])))
    return np.asarray(mass[np.searchsorted(nodes[order], points, side=side)])
