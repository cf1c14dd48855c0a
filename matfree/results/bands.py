r"""How well a quadrature knows a part of the spectrum: what is certain, and what is luck.

**Resolution.** With nodes theta_1 < theta_2 < ... and c_i the sum of the first i weights, the
distribution function Psi of the measure that a probe saw obeys the Markov-Stieltjes
inequalities

    c_{i-1} <= Psi(theta_i -) <= Psi(theta_i) <= c_i,

so between two nodes it is known up to the weights of both. A node that has converged is an
atom of the measure; taking it out of measure and quadrature alike leaves a Gauss
quadrature of the rest, so the inequalities are applied to the other nodes alone. Where
Lanczos ended early all nodes are atoms, and nothing is left open.

**Sampling.** A random unit vector v sees the fraction p of the eigenvalues with the weight
||P v||^2, P the projector on their eigenvectors, of mean p and variance 2 p (1 - p) / (n + 2)
for a real Gaussian direction, at most 2 p (1 - p) / n for signs (exactly
2 (n p - sum_i P_ii^2) / n^2) and half as much in the complex case. That is the variance of a
proportion from (n + 2) / 2 independent trials a probe.

References
----------
T. Chen, T. Trogdon, S. Ubaru (2021), arXiv:2105.06595. A. Agresti, B. A. Coull (1998),
doi:10.1080/00031305.1998.10480550, for proportions near 0 and 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from matfree.results.estimate import student_quantile
from matfree.results.readings import converged
from matfree.results.tridiagonal import Quadrature

HostArray = np.ndarray[Any, Any]
Side = Literal["left", "right"]

KERNEL_TAIL = 6e-3
"""The part of a Jackson kernel's mass that lies beyond three of its widths on one side."""

_NOTHING = 1e-12  # a share of the mass that rounding leaves where there is none


class Sampling(NamedTuple):
    """How much a number of probes leaves to chance."""

    size: int
    """n."""
    known: HostArray
    """(k,) eigenvalues that the probes need not see: they count exactly."""
    num_probes: int
    kind: str

    @property
    def random_part(self) -> float:
        """The fraction of the eigenvalues that is sampled."""
        return 1 - len(self.known) / self.size

    def proportion(self, share: Any, num_known: Any, z: float) -> tuple[HostArray, HostArray]:
        """The centre and the standard error of the interval for a share of all eigenvalues.

        A share of nothing, or of everything, has no sampling error: every probe weighs
        none, or all. Otherwise z^2 / 2 trials are added on either side (Agresti and
        Coull), which keeps the interval honest where a probe sees one eigenvalue of many.
        """
        random, exact = self.random_part, np.asarray(num_known) / self.size
        if random <= 0:
            return exact, np.zeros_like(exact)
        part = np.clip((np.asarray(share) - exact) / random, 0.0, 1.0)
        directions = self.size - len(self.known) + (2 if self.kind in ("gaussian", "sphere") else 0)
        trials = self.num_probes * directions / 2
        centre = (trials * part + z**2 / 2) / (trials + z**2)
        spread = np.sqrt(centre * (1 - centre) / (trials + z**2))
        certain = (part <= _NOTHING) | (part >= 1 - _NOTHING)
        centre, spread = np.where(certain, part, centre), np.where(certain, 0.0, spread)
        return exact + random * centre, random * spread


class Share(NamedTuple):
    """A part of the mass: the samples' mean +- (z stderr + bias) holds it."""

    stderr: float
    bias: float
    """What the nodes leave open, and how far the interval's centre lies from the mean."""
    samples: HostArray
    """(probes,)"""


def share_between(
    rules: list[Quadrature], sampling: Sampling, low: float, high: float, side: Side, gauss: bool
) -> Share:
    """The mass from ``low`` (included) to ``high`` (``side="right"``: included)."""
    below = np.less if side == "left" else np.less_equal
    inside = [(low <= nodes) & below(nodes, high) for nodes, _, _ in rules]
    samples = np.asarray(
        [rule.weights[mask].sum() for rule, mask in zip(rules, inside, strict=True)]
    )
    least, most = _brackets(rules, np.asarray(high), side, gauss)
    least_before, most_before = _brackets(rules, np.asarray(low), "left", gauss)
    ends = np.asarray(
        (
            np.mean(np.maximum(least - most_before, 0.0)),
            np.mean(np.minimum(most - least_before, 1.0)),
        )
    )
    num_known = np.sum((low <= sampling.known) & below(sampling.known, high))
    centres, spreads = sampling.proportion(ends, num_known, student_quantile(0.95, math.inf))
    value = float(samples.mean())
    bias = max(value - float(centres[0]), float(centres[1]) - value, 0.0)
    return Share(float(spreads.max()), bias, samples)


def cdf_band(
    rules: list[Quadrature], sampling: Sampling, points: HostArray, level: float, gauss: bool
) -> tuple[HostArray, HostArray]:
    """Bounds that hold the distribution function at each of the points."""
    z = student_quantile(level, math.inf)
    num_known = np.searchsorted(sampling.known, points, side="right")
    low, high = (np.mean(bound, axis=0) for bound in _brackets(rules, points, "right", gauss))
    below, spread_below = sampling.proportion(low, num_known, z)
    above, spread_above = sampling.proportion(high, num_known, z)
    return np.maximum(below - z * spread_below, 0.0), np.minimum(above + z * spread_above, 1.0)


def _brackets(
    rules: list[Quadrature], points: HostArray, side: Side, gauss: bool
) -> tuple[HostArray, HostArray]:
    """``bracket`` of every probe, (probes, ...)."""
    bounds = [bracket(points, *rule, side=side, gauss=gauss) for rule in rules]
    return np.stack([low for low, _ in bounds]), np.stack([high for _, high in bounds])


def bracket(
    points: HostArray,
    nodes: HostArray,
    weights: HostArray,
    residuals: HostArray,
    *,
    side: Side,
    gauss: bool,
) -> tuple[HostArray, HostArray]:
    """Bounds on the mass at or below the points (``side="left"``: below them) of one probe.

    Parameters
    ----------
    gauss : bool
        Whether this is a Gauss quadrature. Otherwise a kernel has moved the mass, by no
        more than ``residuals`` but for its tail.
    """
    settled = converged(nodes, residuals) if gauss else np.ones(len(nodes), dtype=bool)
    slack = residuals[settled]
    low = _mass(points, nodes[settled] + slack, weights[settled], side)
    high = _mass(points, nodes[settled] - slack, weights[settled], side)
    if not gauss:
        return np.maximum(low - KERNEL_TAIL, 0.0), np.minimum(high / (1 - KERNEL_TAIL), 1.0)
    loose, mass = nodes[~settled], np.concatenate(([0.0], np.cumsum(weights[~settled])))
    j = np.searchsorted(loose, points, side=side)
    return low + mass[np.maximum(j - 1, 0)], high + mass[np.minimum(j + 1, loose.size)]


def _mass(points: HostArray, nodes: HostArray, weights: HostArray, side: Side) -> HostArray:
    order = np.argsort(nodes, kind="stable")
    mass = np.concatenate(([0.0], np.cumsum(weights[order])))
    return np.asarray(mass[np.searchsorted(nodes[order], points, side=side)])
