r"""The error of the Gauss rule for a function about which nothing is known.

Two estimates are available, of which the smaller is used.

**Variation.** The distribution functions of the spectral measure and of its Gauss rule differ at x
by at most the Christoffel function 1 / sum_{j < m} p_j(x)^2 and, between two neighbouring nodes, by
at most the larger of their weights. The error is therefore at most

.. math:: V = \int_a^b \min\Bigl(\frac{1}{\sum_{j < m} p_j(x)^2}, \max(\tau_i, \tau_{i+1})\Bigr)
    \, |df(x)|,

a bound for functions of bounded variation, evaluated with six points between neighbouring nodes.

**Convergence.** Let D1 be the largest change of the quadrature from fewer to m / 2 steps, and D2
that from m / 2 or more to m steps. If D2 <= D1 / 4, the quadrature converges, and D2 is an estimate
of the error. The contribution of eigenvalues that may be hidden beyond the nodes is added:

.. math:: c(a) |f(a) - f(\theta_1)| + c(b) |f(b) - f(\theta_m)|.

This is an empirical rule: in 7,680 runs with ten functions, smooth and discontinuous, it was
never exceeded.

References
----------
G. H. Golub, G. Meurant (2010), doi:10.1515/9781400833887. T. Chen, T. Trogdon, S. Ubaru (2021),
Analysis of stochastic Lanczos quadrature for spectrum approximation, arXiv:2105.06595.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from matfree.arguments import elementwise_values
from matfree.protocol import HostArray
from matfree.quadratures.brackets import Spectrum, reflected
from matfree.quadratures.ends import largest_mass, lower_end
from matfree.quadratures.jacobi import JacobiMatrices

AnyFunction = Callable[[HostArray], HostArray]

_SLOWEST = 0.25  # the largest ratio of successive changes that counts as convergence
_EARLY, _LATE = (0.25, 0.375), (0.5, 0.625, 0.75, 0.875)
_LEVELS_FROM = 4  # steps: with fewer, the levels are not distinct
_INSIDE = 6  # points between neighbouring nodes
_BEYOND = 24  # points between the extreme nodes and the ends of the spectrum


def general_error(T: JacobiMatrices, f: AnyFunction, spectrum: Spectrum) -> float:
    """An estimate of the mean error of the Gauss rules for f; inf if it is unknown."""
    nodes, weights = T.gauss()
    rounding = float(np.mean(T.squares * _rounding(T, f, nodes, weights)))
    low, at_low = _outer_value(T, f, nodes, spectrum[0])
    high, at_high = _outer_value(
        T.affine(-1.0, 0.0), lambda x: f(-x), -nodes, reflected(spectrum)[0]
    )
    high = -high
    if not (np.isfinite(at_low) and np.isfinite(at_high)):
        return math.inf
    variation = _variation(T, f, nodes, weights, low, high)
    change = _change(T, f, nodes, weights, rounding)
    for end, at_end, node in ((low, at_low, nodes.min()), (high, at_high, nodes.max())):
        mass = float(largest_mass(T, np.asarray([end]))[0])
        change += mass * abs(at_end - _values(f, np.asarray([node]))[0])
    return min(change, variation) + rounding


def _outer_value(
    T: JacobiMatrices, f: AnyFunction, nodes: HostArray, known: float | None
) -> tuple[float, complex]:
    """A lower end of the spectrum and the value of f there, which is NaN if it is unknown.

    Where f is not defined below 0, it is assumed that there are no eigenvalues below 0. An
    infinite value of f between the end and the nodes makes the error unbounded.
    """
    least, largest = float(nodes.min()), float(nodes.max())
    seen = lower_end(T, least, largest)
    end = min(max(seen, -math.inf if known is None else known), least)
    if not math.isfinite(end):
        return end, math.nan
    at_end = complex(_values(f, np.asarray([end]))[0])
    if end < 0 < least:
        at_zero = complex(_values(f, np.zeros(1))[0])
        if not np.isfinite(at_zero):
            return end, math.nan
        if not np.isfinite(at_end):
            return 0.0, at_zero
    return end, at_end


def _change(
    T: JacobiMatrices, f: AnyFunction, nodes: HostArray, weights: HostArray, rounding: float
) -> float:
    """The root mean square of the latest changes, if they decrease; otherwise inf."""
    m = T.num_steps
    if m < _LEVELS_FROM:
        return math.inf
    sums = {m: T.squares * np.sum(weights * _values(f, nodes), axis=1)}
    for share in (*_EARLY, *_LATE):
        if (level := max(1, math.ceil(share * m))) not in sums:
            x, w = T.leading(level).gauss()
            sums[level] = T.squares * np.sum(w * _values(f, x), axis=1)

    def largest_change(shares: tuple[float, ...], level: int) -> float:
        changes = [sums[level] - sums[max(1, math.ceil(share * m))] for share in shares]
        return max(float(np.sqrt(np.mean(np.abs(x) ** 2))) for x in changes)

    early = largest_change(_EARLY, math.ceil(_LATE[0] * m))
    late = largest_change(_LATE, m)
    converges = late <= max(_SLOWEST * early, rounding)  # False if a value is not a number
    return late if converges else math.inf


def _variation(
    T: JacobiMatrices,
    f: AnyFunction,
    nodes: HostArray,
    weights: HostArray,
    low: float,
    high: float,
) -> float:
    """The mean of V over the probes."""
    count, m = nodes.shape
    beyond = np.linspace(0, 1, _BEYOND) ** 3  # the Christoffel function decreases rapidly
    inside = np.arange(1, _INSIDE + 1) / (_INSIDE + 1)
    first, last = nodes[:, :1], nodes[:, -1:]
    between = nodes[:, :-1, None] + np.diff(nodes)[:, :, None] * np.r_[0.0, inside]
    points = np.hstack(
        (
            (first - beyond[:0:-1] * (first - low)),
            between.reshape(count, -1),
            last,
            (last + beyond[1:] * (high - last)),
        )
    )
    steps = np.abs(np.diff(_values(f, points)))
    rho = np.exp(-T.log_sums(points, degree=m - 1))
    rho = np.maximum(rho[:, :-1], rho[:, 1:])
    largest = np.maximum(weights[:, :-1], weights[:, 1:])
    caps = np.hstack(
        (
            np.repeat(weights[:, :1], _BEYOND - 1, axis=1),
            np.repeat(largest, _INSIDE + 1, axis=1),
            np.repeat(weights[:, -1:], _BEYOND - 1, axis=1),
        )
    )
    total = float(np.mean(T.squares * np.sum(np.minimum(rho, caps) * steps, axis=1)))
    return total if math.isfinite(total) else math.inf


def _rounding(T: JacobiMatrices, f: AnyFunction, nodes: HostArray, weights: HostArray) -> HostArray:
    """The change of each rule when its nodes move by rounding errors towards the middle, (N,)."""
    step = 4 * T.eps * float(np.abs(nodes).max())
    middle = (nodes.min() + nodes.max()) / 2
    moved = nodes + np.where(nodes < middle, step, -step)
    values = _values(f, nodes)
    change = np.abs(_values(f, moved) - values)
    change = np.where(np.isfinite(change), change, 0.0)
    return np.asarray(np.sum(weights * (change + 64 * T.eps * np.abs(values)), axis=1))


def _values(f: AnyFunction, points: HostArray) -> HostArray:
    """f at points of any shape, NaN where it is undefined."""
    try:
        return elementwise_values(f, points.ravel()).reshape(points.shape)
    except (TypeError, ValueError):
        return np.full(points.shape, math.nan)
