r"""The kernel polynomial method: Chebyshev moments on an interval that contains the spectrum.

Let the spectrum of B = (A - c I) / h lie in [-1, 1], and let T_k be the Chebyshev polynomials.
The vectors t_k = T_k(B) v satisfy t_{k+1} = 2 B t_k - t_{k-1}. Because of
2 T_j T_k = T_{j+k} + T_{|j-k|}, m matvecs give 2 m + 1 moments:

.. math:: \mu_{2k} = 2 t_k^H t_k - \mu_0, \qquad \mu_{2k+1} = 2 t_{k+1}^H t_k - \mu_1.

Multiplied by Jackson's damping factors g_k, they are the moments of the spectral measure
convolved with a positive kernel. Its Gauss-Chebyshev quadrature with N nodes is

.. math:: x_j = \cos \phi_j, \quad w_j = \frac1N \Bigl(\mu_0
    + 2 \sum_{k=1}^{2m} g_k \mu_k \cos(k \phi_j)\Bigr), \quad
    \phi_j = \frac{\pi (j + 1/2)}{N}.

In contrast to Lanczos quadrature, the resolution does not adapt to the spectrum: it is about
pi h / (2 m) in the middle of the interval.

References
----------
A. Weisse, G. Wellein, A. Alvermann, H. Fehske (2006), The kernel polynomial method,
doi:10.1103/RevModPhys.78.275.
"""

from __future__ import annotations

from typing import final

import numpy as np
import scipy.fft

from matfree import probes
from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK, tridiagonalize
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.spectra.deflated_operator import DeflatedOperator
from matfree.arrays import epsilon, real_part, to_host
from matfree.protocol import Array, HostArray
from matfree.results import Quadrature

BOUND_STEPS = 20
"""Lanczos steps that determine the interval."""

_WIDENING = 0.01  # relative, at either end: Ritz values and residuals are only estimates
_GROWTH = 1.01  # a moment above it shows that an eigenvalue is outside the interval
_ATTEMPTS = 5  # each with an interval that is wider by half
_NODES_PER_MOMENT = 8  # enough that the discrete measure is as accurate as the smooth one
_REACH = 3.0  # in widths of the kernel: all of its mass but ``bands.KERNEL_TAIL``


@final
class KernelPolynomial:
    """Quadratures of the spectral measures of blocks of probes, from Chebyshev moments.

    Parameters
    ----------
    deflated : DeflatedOperator
    num_steps : int
        Matvecs per probe.
    seed : int
        The seed of the short Lanczos run that determines the interval. Its matvecs are counted.
    """

    method = "kpm"
    reorthogonalize = "full"
    node_error = 0.0
    coefficients: tuple[HostArray, ...] = ()
    saved = ("centre", "half")

    def __init__(self, deflated: DeflatedOperator, num_steps: int, *, seed: int) -> None:
        self.deflated, self.A = deflated, deflated.A
        self.num_steps, self.seed = num_steps, seed
        self.centre, self.half = 0.0, 0.0  # centre and half-width; 0 until they are known

    def __call__(self, V: Array, checkpoint: Checkpoint) -> list[Quadrature]:
        """The quadrature of the spectral measure of each column of V."""
        if self.half == 0:
            self.find_interval()
            checkpoint.save()
        for _ in range(_ATTEMPTS):
            moments = chebyshev_moments(self.A, V, self.num_steps, self.centre, self.half)
            if np.abs(moments).max() <= _GROWTH:
                return [damped_quadrature(mu, self.centre, self.half) for mu in moments.T]
            self.half *= 1.5
        raise ValueError(
            "Chebyshev moments grow on every interval, although those of a Hermitian matrix are "
            f"at most 1: got {np.abs(moments).max():.1e} on {self.centre:.6g} +- "
            f"{self.half / 1.5:.6g}; test the operator with check_operator, or use "
            'method="lanczos".'
        )

    def find_interval(self) -> None:
        """Determine an interval that contains the spectrum, by a short Lanczos run."""
        start = self.deflated.probes(
            1, seed=self.seed, start=0, kind="gaussian", stream=probes.START
        )
        steps = min(BOUND_STEPS, self.deflated.size)
        self.centre, self.half = _enclosing_interval(self.A, start, steps)


def chebyshev_moments(
    A: CountedOperator, V: Array, num_steps: int, centre: float, half: float
) -> HostArray:
    """The moments mu_0 = 1, mu_1, ... of each column's measure, (2 num_steps + 1, k).

    They are checked every few steps. If one of them exceeds 1, the later ones remain 0.
    """
    space, xp = A.space, A.space.xp
    norms = space.norms(V)
    inverse = xp.astype(1.0 / norms, space.dtype)
    previous, current = None, V * inverse[None, :]
    moments = np.zeros((2 * num_steps + 1, V.shape[1]))
    moments[0] = 1.0
    fresh: list[Array] = []
    for step in range(num_steps):
        W = (A(current) - centre * current) * (1.0 / half)
        W = W if previous is None else 2.0 * W - previous
        previous, current = current, W
        odd, even = space.dots(current, previous), space.dots(current, current)
        fresh.append(xp.stack((real_part(xp, odd), real_part(xp, even))))
        if (step + 1) % STEPS_PER_CHECK == 0 or step + 1 == num_steps:
            pairs = to_host(xp.stack(fresh))
            A.require_finite(pairs)
            first = step + 1 - len(fresh)
            _double_degree(moments, pairs, first)
            fresh = []
            if np.abs(moments).max() > _GROWTH:
                break
    return moments


def damped_quadrature(moments: HostArray, centre: float, half: float) -> Quadrature:
    """Nodes and weights of the smoothed measure, with the kernel's reach in place of residuals."""
    degree = len(moments) - 1
    count = _NODES_PER_MOMENT * degree
    angles = np.pi * (np.arange(count)[::-1] + 0.5) / count  # descending, for ascending nodes
    weights = scipy.fft.dct(jackson_factors(degree) * moments, type=3, n=count)[::-1] / count
    tiny = np.finfo(float).tiny
    weights = np.maximum(weights, tiny)  # rounding or noise may have made some negative
    width = _REACH * np.pi / (degree + 2)
    ends = np.cos(np.clip(np.stack((angles - width, angles + width)), 0.0, np.pi))
    reach = half * np.abs(ends - np.cos(angles)).max(axis=0)
    return Quadrature(centre + half * np.cos(angles), weights / weights.sum(), reach)


def jackson_factors(degree: int) -> HostArray:
    """g_0 = 1, ..., g_degree of the positive kernel with the smallest variance, (degree + 1,)."""
    k, last = np.arange(degree + 1), degree + 2
    angle = np.pi / last
    return np.asarray(((last - k) * np.cos(k * angle) + np.sin(k * angle) / np.tan(angle)) / last)


def _double_degree(moments: HostArray, pairs: HostArray, first: int) -> None:
    """Set the moments of twice the degree from t_{k+1}^H t_k and t_{k+1}^H t_{k+1}."""
    for k, (odd, even) in enumerate(pairs, start=first):
        if k == 0:
            moments[1] = odd
        else:
            moments[2 * k + 1] = 2 * odd - moments[1]
        moments[2 * k + 2] = 2 * even - 1.0


def _enclosing_interval(A: CountedOperator, start: Array, num_steps: int) -> tuple[float, float]:
    """The centre and half-width of an interval that contains the spectrum.

    Its ends are the extreme Ritz values, moved outwards by their residuals and by a small
    fraction of the width. For a multiple of the identity, the width allows for rounding.
    """
    T = tridiagonalize(A, start, num_steps, reorthogonalize="full", keep_basis=False)
    rule = T.ritz()
    low = float(rule.nodes[0] - rule.residuals[0])
    high = float(rule.nodes[-1] + rule.residuals[-1])
    least = epsilon(A.space.xp, A.space.dtype) ** 0.5 * max(abs(low), abs(high))
    centre, half = (low + high) / 2, (high - low) / 2
    return centre, max((1 + 2 * _WIDENING) * half, least) or 1.0
