r"""The kernel polynomial method: Chebyshev moments on an interval that holds the spectrum.

With the spectrum of B = (A - c I) / h in [-1, 1] and T_k the Chebyshev polynomials, the
vectors t_k = T_k(B) v obey t_{k+1} = 2 B t_k - t_{k-1}, and since
2 T_j T_k = T_{j+k} + T_{|j-k|}, m products give 2 m + 1 moments:

    mu_{2k} = 2 t_k^H t_k - mu_0,        mu_{2k+1} = 2 t_{k+1}^H t_k - mu_1.

Damped by Jackson's factors g_k they are the moments of the measure smoothed by a positive
kernel, whose Gauss-Chebyshev quadrature has the nodes and weights (N of them)

    x_j = cos(pi (j + 1/2) / N),    w_j = (mu_0 + 2 sum_k g_k mu_k cos(k pi (j + 1/2) / N)) / N.

Unlike Lanczos, the resolution is the same everywhere: about pi h / (2 m) in the middle.
"""

from __future__ import annotations

from typing import final

import numpy as np
import scipy.fft

from matfree import probes
from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK, tridiagonalize
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.spectra.deflated_operator import Complement
from matfree.arrays import epsilon, real_part, to_host
from matfree.protocol import Array, HostArray
from matfree.results import Quadrature

BOUND_STEPS = 20
"""Lanczos steps that find the interval."""

_WIDENING = 0.01  # of the interval, on either side: Ritz values and residuals are estimates
_GROWTH = 1.01  # a moment beyond that shows an eigenvalue outside of the interval
_ATTEMPTS = 5  # at an interval, each half as wide again
_NODES_A_MOMENT = 8  # so that atoms are as good as the smooth measure they stand for
_REACH = 3.0  # widths of the kernel that hold its mass but for ``bands.KERNEL_TAIL``


@final
class KernelPolynomial:
    """Quadratures of probes by Chebyshev moments.

    Parameters
    ----------
    complement : what is left of the operator
    num_steps : int
        Products with each probe.
    seed : int
        Of the short Lanczos run that finds the interval; its products are counted.
    """

    method = "kpm"
    reorthogonalize = "full"
    node_error = 0.0
    saved = ("centre", "half")

    def __init__(self, complement: Complement, num_steps: int, *, seed: int) -> None:
        self.complement, self.A = complement, complement.A
        self.num_steps, self.seed = num_steps, seed
        self.centre, self.half = 0.0, 0.0  # not known yet

    def __call__(self, V: Array, checkpoint: Checkpoint) -> list[Quadrature]:
        """The quadrature of each column's measure."""
        if self.half == 0:
            self.find_interval()
            checkpoint.save()
        for _ in range(_ATTEMPTS):
            moments = chebyshev_moments(self.A, V, self.num_steps, self.centre, self.half)
            if np.abs(moments).max() <= _GROWTH:
                return [damped_quadrature(mu, self.centre, self.half) for mu in moments.T]
            self.half *= 1.5
        raise ValueError(
            "Chebyshev moments grow whatever the interval: got "
            f"{np.abs(moments).max():.1e} on {self.centre:.6g} +- {self.half / 1.5:.6g}; the "
            "operator's products are not those of one Hermitian matrix (see check_operator), or "
            'use method="lanczos".'
        )

    def find_interval(self) -> None:
        """An interval that holds the spectrum, by a short Lanczos run."""
        start = self.complement.probes(
            1, seed=self.seed, start=0, kind="gaussian", stream=probes.START
        )
        steps = min(BOUND_STEPS, self.complement.size)
        self.centre, self.half = _enclosing_interval(self.A, start, steps)


def chebyshev_moments(
    A: CountedOperator, V: Array, num_steps: int, centre: float, half: float
) -> HostArray:
    """mu_0 = 1, mu_1, ..., mu_{2 num_steps} of each column's measure, (2 num_steps + 1, k).

    They are looked at every few steps: where one has outgrown 1, the rest stays 0.
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
            _double(moments, pairs, first)
            fresh = []
            if np.abs(moments).max() > _GROWTH:
                break
    return moments


def damped_quadrature(moments: HostArray, centre: float, half: float) -> Quadrature:
    """Nodes and weights of the smoothed measure, and the reach of the kernel at each node."""
    degree = len(moments) - 1
    count = _NODES_A_MOMENT * degree
    angles = np.pi * (np.arange(count)[::-1] + 0.5) / count  # descending: nodes ascend
    weights = scipy.fft.dct(jackson_factors(degree) * moments, type=3, n=count)[::-1] / count
    tiny = np.finfo(float).tiny
    weights = np.maximum(weights, tiny)  # negative by rounding, or by a noisy operator
    width = _REACH * np.pi / (degree + 2)
    ends = np.cos(np.clip(np.stack((angles - width, angles + width)), 0.0, np.pi))
    reach = half * np.abs(ends - np.cos(angles)).max(axis=0)
    return Quadrature(centre + half * np.cos(angles), weights / weights.sum(), reach)


def jackson_factors(degree: int) -> HostArray:
    """g_0 = 1, ..., g_degree: of all positive kernels of that degree, the narrowest."""
    k, last = np.arange(degree + 1), degree + 2
    angle = np.pi / last
    return np.asarray(((last - k) * np.cos(k * angle) + np.sin(k * angle) / np.tan(angle)) / last)


def _double(moments: HostArray, pairs: HostArray, first: int) -> None:
    """Moments of twice the degree from t_{k+1}^H t_k and t_{k+1}^H t_{k+1}."""
    for k, (odd, even) in enumerate(pairs, start=first):
        if k == 0:
            moments[1] = odd
        else:
            moments[2 * k + 1] = 2 * odd - moments[1]
        moments[2 * k + 2] = 2 * even - 1.0


def _enclosing_interval(A: CountedOperator, start: Array, num_steps: int) -> tuple[float, float]:
    """The centre and half-width of an interval that holds the spectrum.

    Its ends are the extreme Ritz values moved outwards by their residuals, and a little
    more. Where the spectrum is a point the interval is wide enough for rounding.
    """
    T = tridiagonalize(A, start, num_steps, reorthogonalize="full", keep_basis=False)
    rule = T.ritz()
    low = float(rule.nodes[0] - rule.residuals[0])
    high = float(rule.nodes[-1] + rule.residuals[-1])
    least = epsilon(A.space.xp, A.space.dtype) ** 0.5 * max(abs(low), abs(high))
    centre, half = (low + high) / 2, (high - low) / 2
    return centre, max((1 + 2 * _WIDENING) * half, least) or 1.0
