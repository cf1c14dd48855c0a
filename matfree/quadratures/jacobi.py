r"""Jacobi matrices of several probes, and the quadratures that they define.

m steps of the Lanczos recurrence from a probe w give a Jacobi matrix T and the norm beta_m of the
remainder. The orthonormal polynomials of the spectral measure of w satisfy

.. math:: \beta_j p_j(x) = (x - \alpha_j) p_{j-1}(x) - \beta_{j-1} p_{j-2}(x), \qquad p_0 = 1.

They are known up to degree m. Their ratios are the pivots of T - x I,

.. math:: d_1 = \alpha_1 - x, \qquad d_j = \alpha_j - x - \beta_{j-1}^2 / d_{j-1}, \qquad
    |p_j(x) / p_{j-1}(x)| = |d_j| / \beta_j.

References
----------
G. H. Golub, G. Meurant (2010), Matrices, Moments and Quadrature with Applications,
doi:10.1515/9781400833887, chapters 2 to 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from matfree.protocol import HostArray

NODE_ROUNDING = 32
"""Machine precisions, relative to ||A||: the rounding error of a node (``matfree.arrays``)."""

_SMALLEST = float(np.finfo(np.float64).tiny)


@final
@dataclass(frozen=True, eq=False)
class JacobiMatrices:
    """The recurrence coefficients of N probes after m steps each, without those that ended."""

    alphas: HostArray
    """(N, m) float64: the diagonals."""
    betas: HostArray
    """(N, m) float64, positive: the off-diagonals, and the norm of the remainder at the end."""
    squares: HostArray
    """(N,) float64: ||w||^2 of the probes."""
    eps: float
    """The machine precision of the recurrence."""

    @property
    def num_steps(self) -> int:
        """m."""
        return int(self.alphas.shape[1])

    def leading(self, steps: int) -> JacobiMatrices:
        """The same probes after fewer steps."""
        return replace(self, alphas=self.alphas[:, :steps], betas=self.betas[:, :steps])

    def affine(self, slope: float, shift: float) -> JacobiMatrices:
        """The coefficients of the operator slope A + shift I."""
        return replace(self, alphas=slope * self.alphas + shift, betas=abs(slope) * self.betas)

    def gauss(self) -> tuple[HostArray, HostArray]:
        """Nodes and weights of the Gauss rules, (N, m) each; the sums of the weights are 1."""
        m, i = self.num_steps, np.arange(self.num_steps)
        T = np.zeros((len(self.alphas), m, m))
        T[:, i, i], T[:, i[1:], i[:-1]] = self.alphas, self.betas[:, : m - 1]
        nodes, vectors = np.linalg.eigh(T)
        return nodes, vectors[:, 0, :] ** 2

    def radau(self, end: float) -> tuple[HostArray, HostArray]:
        """Nodes and weights of the rules of m + 1 nodes, one of them at ``end``, (N, m + 1).

        They are exact for polynomials of degree 2 m. ``end`` must be outside the interval of the
        Gauss nodes. (Golub and Meurant, section 6.2.)
        """
        d = self.alphas[:, 0] - end
        for j in range(1, self.num_steps):
            d = self.alphas[:, j] - end - self.betas[:, j - 1] ** 2 / d
        last = end + self.betas[:, -1] ** 2 / d
        longer = replace(self, alphas=np.column_stack((self.alphas, last)))
        return longer.gauss_of_longer()

    def gauss_of_longer(self) -> tuple[HostArray, HostArray]:
        """The Gauss rules of matrices with as many rows as there are alphas."""
        none = np.zeros((len(self.betas), 1))
        return replace(self, betas=np.column_stack((self.betas, none))).gauss()

    def log_sums(self, points: HostArray, *, degree: int) -> HostArray:
        """log sum_j |p_j(x)|^2 over j up to ``degree`` <= m, (N, points), at real or complex x.

        ``points`` is an array (K,) for all probes, or (N, K). Logarithms are summed, because the
        polynomials grow exponentially outside the spectrum.
        """
        points = np.atleast_2d(points)
        total = log_square = np.zeros((len(self.alphas), points.shape[1]))
        d = np.ones_like(points)
        for j in range(degree):
            back = (self.betas[:, j - 1] ** 2)[:, None] / d if j else 0.0
            d = self.alphas[:, j, None] - points - back
            # A pivot of 0 means that x is a root of p_j; the next pivot is then infinite.
            d = np.where(d == 0, _SMALLEST**0.5, d)
            log_square = log_square + 2 * (np.log(np.abs(d)) - np.log(self.betas[:, j, None]))
            total = np.logaddexp(total, log_square)
        return total

    def squared(self) -> JacobiMatrices:
        """The coefficients of the operator A^2 after m // 2 steps, which need no matvec.

        Two steps with A make one with A^2: the Lanczos recurrence is run with the square of T,
        extended by the remainder, from the first unit vector. Probes whose recurrence with A^2
        ends are continued by steps of weight 0.
        """
        count, m = self.alphas.shape
        i = np.arange(m)
        B = np.zeros((count, m + 1, m + 1))
        B[:, i, i], B[:, i, i + 1], B[:, i + 1, i] = self.alphas, self.betas, self.betas
        V = np.zeros((count, m // 2 + 1, m + 1))
        V[:, 0, 0] = 1.0
        alphas, betas = np.ones((count, m // 2)), np.zeros((count, m // 2))
        scale = np.abs(B).sum(axis=2).max(axis=1) ** 2
        alive = np.ones(count, dtype=bool)
        for k in range(m // 2):
            R = np.einsum("pij,pj->pi", B, np.einsum("pij,pj->pi", B, V[:, k]))
            alphas[:, k] = np.where(alive, np.einsum("pi,pi->p", R, V[:, k]), scale)
            for _ in range(2):  # twice is enough to be orthogonal to all vectors
                R -= np.einsum("pkj,pk->pj", V, np.einsum("pkj,pj->pk", V, R))
            norms = np.sqrt(np.einsum("pi,pi->p", R, R))
            alive &= norms > 32 * self.eps * scale
            betas[:, k] = np.where(alive, norms, 0.0)
            V[:, k + 1] = np.where(alive[:, None], R / np.maximum(norms, _SMALLEST)[:, None], 0.0)
        return replace(self, alphas=alphas, betas=betas)


def unfinished(
    coefficients: Sequence[HostArray],
    squares: Sequence[float],
    num_steps: int,
    rounding: float,
) -> JacobiMatrices:
    """The matrices of the probes whose Krylov space was not invariant after all steps.

    The Gauss rules of the others are exact.

    Parameters
    ----------
    coefficients : sequence of (2, steps) float64
        Per probe, the diagonal and the off-diagonal, with the norm of the remainder at its end.
    squares : sequence of float
        ||w||^2 per probe.
    num_steps : int
        The number of steps that was asked for.
    rounding : float
        The rounding error of a node, relative to T. A smaller remainder is a rounding error.
    """
    kept = [
        (array, square)
        for array, square in zip(coefficients, squares, strict=True)
        if array.shape[1] == num_steps > 0 and array[1, -1] > rounding * np.abs(array).max()
    ]
    arrays = np.asarray([array for array, _ in kept]).reshape(len(kept), 2, num_steps)
    return JacobiMatrices(
        arrays[:, 0], arrays[:, 1], np.asarray([x for _, x in kept]), rounding / NODE_ROUNDING
    )
