r"""Brackets of quadratic forms by Gauss and Gauss-Radau rules.

The error of the Gauss rule of m nodes is f^(2m)(xi) / (2m)! times a positive number, and that of
the Gauss-Radau rule with one node at an end a of the spectrum is f^(2m+1)(xi) / (2m+1)! times a
number of the sign of xi - a. If the derivatives of f have constant signs, w^H f(A) w therefore lies
between the two rules:

========================  =====================  ==================
function                  sign of f^(2m+1)       end
========================  =====================  ==================
log x, x^p, -x log x      opposite to f^(2m)     lower, a <= least eigenvalue
x^(-1/2)                  opposite to f^(2m)     lower
1 / (x - s), s < a        opposite to f^(2m)     lower
exp x                     that of f^(2m)         upper, b >= largest eigenvalue
========================  =====================  ==================

Any a below the spectrum is right; the closer it is, the tighter is the bracket. A function that is
finite at 0 and defined for x >= 0 only has the end a = 0 without further knowledge.

For a resolvent f(x) = 1 / (x - z) with a complex z, all measures with the same coefficients give
values in Weyl's disc, so that

.. math:: |w^H (A - z)^{-1} w - \text{quadrature}| \le
    \frac{\|w\|^2}{|\mathrm{Im} z| \sum_{j < m} |p_j(z)|^2}.

References
----------
G. H. Golub, G. Meurant (2010), Matrices, Moments and Quadrature with Applications,
doi:10.1515/9781400833887. N. I. Akhiezer (1965), The classical moment problem, for Weyl's discs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
import scipy.special

from matfree.protocol import HostArray
from matfree.quadratures.ends import lower_end
from matfree.quadratures.jacobi import NODE_ROUNDING, JacobiMatrices

Spectrum: TypeAlias = tuple[float | None, float | None]
"""A lower and an upper bound of all eigenvalues; None for an unknown one."""


@final
@dataclass(frozen=True)
class SignedFunction:
    """A function whose derivatives of high order have constant signs for x above ``pole``."""

    evaluate: Callable[[HostArray], HostArray]
    """f, finite above ``pole``."""
    alternating: bool = True
    """Whether successive derivatives have opposite signs, so that the end is the lower one."""
    pole: float = -math.inf
    """f is defined for x > pole, or for x >= pole if ``closed``."""
    closed: bool = False
    integrable: bool = False
    """Whether f may be evaluated arbitrarily close to the pole with a moderate result."""


def power(p: float) -> SignedFunction:
    """x^p for x >= 0, p > 0."""
    return SignedFunction(lambda x: np.maximum(x, 0.0) ** p, pole=0.0, closed=True)


LOG = SignedFunction(np.log, pole=0.0, integrable=True)
EXP = SignedFunction(np.exp, alternating=False)
ENTROPY = SignedFunction(
    lambda x: np.asarray(scipy.special.entr(np.maximum(x, 0.0))), pole=0.0, closed=True
)

INVERSE_SQRT = SignedFunction(lambda x: 1 / np.sqrt(x), pole=0.0)

NAMED = {"log": LOG, "sqrt": power(0.5), "inverse sqrt": INVERSE_SQRT, "exp": EXP}


def same_function(f: object) -> SignedFunction | None:
    """The function with derivatives of constant sign that a user's function is known to be."""
    known = (
        (np.log, LOG),
        (np.sqrt, power(0.5)),
        (np.exp, EXP),
        (scipy.special.entr, ENTROPY),
    )
    f = getattr(f, "up_to_a_constant", None) or f  # the error does not depend on the constant
    return next((signed for function, signed in known if f is function), None)


def bracket_width(T: JacobiMatrices, f: SignedFunction, spectrum: Spectrum) -> HostArray:
    """A bound on the error of each probe's Gauss rule for f, (N,); inf if it is unknown.

    Parameters
    ----------
    T : JacobiMatrices
    f : SignedFunction
    spectrum : (float or None, float or None)
        Known bounds of the spectrum.
    """
    nodes, weights = T.gauss()
    least, largest = float(nodes.min()), float(nodes.max())
    size = max(abs(least), abs(largest))
    if f.alternating:
        end = _lower_node(T, f, least, largest, spectrum[0])
        if end is None:
            return np.full(len(T.alphas), math.inf)
    else:
        mirrored = T.affine(-1.0, 0.0), -largest, -least
        end = -_known_or_seen(*mirrored, reflected(spectrum)[0])
        if end == math.inf:
            return np.full(len(T.alphas), math.inf)
        end = max(end, largest + T.eps * size)
    points, masses = T.radau(end)
    if f.alternating:
        points = np.maximum(points, end)  # rounding may move a node below its end
    gauss, radau = (
        np.sum(w * f.evaluate(x), axis=1) for x, w in ((nodes, weights), (points, masses))
    )
    slack = rounding_of(T, f, nodes, weights, size) + rounding_of(T, f, points, masses, size)
    return np.asarray(T.squares * (np.abs(radau - gauss) + slack))


def _lower_node(
    T: JacobiMatrices, f: SignedFunction, least: float, largest: float, known: float | None
) -> float | None:
    """The Radau node: the largest number that is known to be below the spectrum; None if f is
    not defined there."""
    size = max(abs(least), abs(largest), abs(f.pole) if math.isfinite(f.pole) else 0.0)
    end = _known_or_seen(T, least, largest, known)
    if f.closed:
        end = max(end, f.pole)
    elif f.integrable:
        # Eigenvalues closer to the pole are refused; the bracket is finite, although wide.
        end = max(end, f.pole + T.eps * size)
    if not math.isfinite(end) or (end <= f.pole and not f.closed):
        return None
    closest = least - T.eps * min(size, abs(least - f.pole) if f.pole > -math.inf else size)
    return min(end, closest)


def _known_or_seen(T: JacobiMatrices, least: float, largest: float, known: float | None) -> float:
    """The better one of a known lower bound and that of the probes."""
    return max(lower_end(T, least, largest), -math.inf if known is None else known)


def reflected(spectrum: Spectrum) -> Spectrum:
    """The bounds of the spectrum of -A."""
    low, high = spectrum
    return (None if high is None else -high, None if low is None else -low)


def rounding_of(
    T: JacobiMatrices, f: SignedFunction, nodes: HostArray, weights: HostArray, size: float
) -> HostArray:
    """The error of a rule whose nodes are moved by the rounding of the recurrence, (N,)."""
    step = 4 * T.eps * size
    below, above = nodes - step, nodes + step
    if f.closed:
        below = np.maximum(below, f.pole)
    elif f.pole > -math.inf:
        below = np.maximum(below, (nodes + f.pole) / 2)
    value = f.evaluate(nodes)
    change = np.maximum(np.abs(f.evaluate(below) - value), np.abs(f.evaluate(above) - value))
    return np.asarray(np.sum(weights * (change + 64 * T.eps * np.abs(value)), axis=1))


def absolute_power_width(T: JacobiMatrices, p: float, spectrum: Spectrum) -> HostArray:
    """A bound on the error of each probe's Gauss rule for |x|^p, (N,).

    |x|^p is the power p / 2 of A^2, whose least eigenvalue is at least 0, so that nothing needs
    to be known about the spectrum. For a definite operator the bracket of x^p is often tighter.
    """
    if T.num_steps < 2:
        return np.full(len(T.alphas), math.inf)
    nodes, weights = T.gauss()
    size = float(np.abs(nodes).max())
    half, square = power(p / 2), T.squared()
    gauss = np.sum(weights * np.abs(nodes) ** p, axis=1)
    ends = square.gauss(), square.radau(-NODE_ROUNDING * T.eps * size**2)
    sums = [np.sum(w * half.evaluate(x), axis=1) for x, w in ends]
    step = NODE_ROUNDING * T.eps * size  # what rounding makes of an eigenvalue 0, to the power p
    moved = [np.maximum(np.abs(nodes) + sign * step, 0.0) ** p for sign in (-1, 1)]
    change = np.max([np.abs(x - np.abs(nodes) ** p) for x in moved], axis=0)
    slack = np.sum(weights * (change + 64 * T.eps * np.abs(nodes) ** p), axis=1)
    width = T.squares * (np.maximum(*(np.abs(x - gauss) for x in sums)) + slack)
    for sign, (low, _) in ((1.0, spectrum), (-1.0, reflected(spectrum))):
        definite = T.affine(sign, 0.0)
        least, largest = sorted((sign * float(nodes.min()), sign * float(nodes.max())))
        if least > -step and _known_or_seen(definite, least, largest, low) >= 0:
            width = np.minimum(width, bracket_width(definite, power(p), (low, None)))
    return np.asarray(width)


def resolvent_width(T: JacobiMatrices, z: complex, factor: float, spectrum: Spectrum) -> HostArray:
    """A bound on the error of each probe's Gauss rule for factor / (x - z), (N,)."""
    nodes, weights = T.gauss()
    size = max(float(np.abs(nodes).max()), abs(z))
    if z.imag == 0:
        sign = 1.0 if z.real < nodes.min() else -1.0
        low, high = spectrum if sign > 0 else reflected(spectrum)
        pole = sign * z.real
        f = SignedFunction(lambda x: 1 / (x - pole), pole=pole)
        if sign < 0 and z.real <= nodes.max():  # there may be eigenvalues next to the pole
            return np.full(len(nodes), math.inf)
        return np.asarray(factor * bracket_width(T.affine(sign, 0.0), f, (low, high)))
    disc = np.exp(-T.log_sums(np.asarray([z]), degree=T.num_steps - 1)[:, 0]) / abs(z.imag)
    distance = np.abs(nodes - z)
    slack = np.sum(weights * T.eps * (4 * size / distance**2 + 64 / distance), axis=1)
    return np.asarray(factor * T.squares * (disc + slack))
