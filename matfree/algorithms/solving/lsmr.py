r"""LSMR: systems and least-squares problems with any operator that has an adjoint.

The Golub-Kahan process started at b is equivalent to the Lanczos recurrence of A^H A, without
forming this product. LSMR minimizes ||A^H r|| in its Krylov space, which is MINRES applied to the
normal equations

.. math:: A^H A x = A^H b.

References
----------
D. C.-L. Fong, M. A. Saunders (2011), LSMR: an iterative algorithm for sparse least-squares
problems, doi:10.1137/10079687X. The names of the numbers are those of this article.
"""

from __future__ import annotations

from typing import final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.active_columns import SMALLEST_RATIO, ColumnwiseSolver
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


@final
class Lsmr(ColumnwiseSolver):
    """The state of LSMR; see the module.

    Parameters
    ----------
    A, R, norms, targets
        As for :class:`Solver`.
    adjoint : CountedOperator
        A^H.
    rtol : float
        The size of ||A^H r|| / (sigma ||r||), where sigma is an estimate of the smallest
        singular value, at which x is a least-squares solution.
    """

    name = "LSMR"
    blocks = ("x", "u", "v", "h", "h_bar")
    numbers = (
        *("alpha", "alpha_bar", "zeta_bar", "rho", "rho_bar", "c_bar", "s_bar", "zeta"),
        *("beta_dd", "beta_d", "rho_d", "tau_tilde", "theta_tilde", "largest", "smallest"),
    )
    saved = (
        *("X", "active", "residuals", "least_squares", "norm", "num_steps", "is_exhausted"),
        *blocks,
        *numbers,
    )

    def __init__(
        self,
        A: CountedOperator,
        R: Array,
        norms: HostArray,
        targets: HostArray,
        *,
        adjoint: CountedOperator,
        rtol: float,
    ) -> None:
        super().__init__(A, R, norms, targets)
        self.adjoint, self.rtol, self.target = adjoint, rtol, A.operator.space
        one, zero = np.ones(len(norms)), np.zeros(len(norms))
        self.u, self.v = _scaled(self.target, R, norms), self.space.zeros(len(norms))
        self.h = self.h_bar = self.v
        self.alpha = self.alpha_bar = self.zeta_bar = zero
        self.rho = self.rho_bar = self.c_bar = self.rho_d = one
        self.s_bar = self.zeta = self.beta_d = self.tau_tilde = self.theta_tilde = zero
        self.beta_dd, self.largest, self.smallest = norms.copy(), zero, np.inf * one
        # Vectors of the two sides are stored by rows only if both have the same rows.
        self.by_row = dict.fromkeys(("X", "x", "v", "h", "h_bar", "u"), 0)
        if A.operator.shape[0] != A.operator.shape[1]:
            del self.by_row["u"]

    @property
    def cost(self) -> int:
        return (2 if self.num_steps else 3) * len(self.active)

    def _begin(self) -> None:
        """The first vectors of the Golub-Kahan process."""
        v = self.adjoint(self.u)
        self.alpha = _lengths(self.space, self.adjoint, v)
        self.h = self.v = _scaled(self.space, v, self.alpha)
        self.alpha_bar, self.zeta_bar = self.alpha, self.alpha * self.beta_dd
        orthogonal = self.alpha <= 0  # A^H b = 0: the least-squares solution is x = 0
        self.least_squares[self.active] = orthogonal
        self.drop(orthogonal)

    def advance(self) -> None:
        space, target = self.space, self.target
        if not self.num_steps:
            self._begin()
            if self.is_exhausted:
                return
        u = self.A(self.v) - self.u * target.asarray(self.alpha)[None, :]
        beta = _lengths(target, self.A, u)
        self.u = _scaled(target, u, beta)
        v = self.adjoint(self.u) - self.v * space.asarray(beta)[None, :]
        self.alpha = _lengths(space, self.adjoint, v)
        self.v = _scaled(space, v, self.alpha)
        self._rotate(beta)
        self.num_steps += 1
        self._drop_finished(beta)

    def _rotate(self, beta: HostArray) -> None:
        """Update the QR factorizations of the bidiagonal matrix, and the solution."""
        space, rho_before, rho_bar_before = self.space, self.rho, self.rho_bar
        c, s, self.rho = _rotation(self.alpha_bar, beta)
        theta = s * self.alpha
        self.alpha_bar = c * self.alpha
        theta_bar, tip = self.s_bar * self.rho, self.c_bar * self.rho
        zeta_before = self.zeta
        self.c_bar, self.s_bar, self.rho_bar = _rotation(tip, theta)
        self.zeta, self.zeta_bar = self.c_bar * self.zeta_bar, -self.s_bar * self.zeta_bar
        back = theta_bar * self.rho / (rho_before * rho_bar_before)
        self.h_bar = self.h - self.h_bar * space.asarray(back)[None, :]
        step = self.zeta / (self.rho * self.rho_bar)
        self.x = self.x + self.h_bar * space.asarray(step)[None, :]
        self.h = self.v - self.h * space.asarray(theta / self.rho)[None, :]
        self._estimate_residuals(c, s, theta_bar, zeta_before)
        self.largest = np.maximum(self.largest, self.rho_bar)
        if self.num_steps:
            self.smallest = np.minimum(self.smallest, rho_bar_before)
        self.norm = max(self.norm, float(np.max(self.largest)))

    def _estimate_residuals(
        self, c: HostArray, s: HostArray, theta_bar: HostArray, zeta_before: HostArray
    ) -> None:
        """The norms of the residuals, section 5.1 of the article."""
        beta_hat, self.beta_dd = c * self.beta_dd, -s * self.beta_dd
        c_tilde, s_tilde, rho_tilde = _rotation(self.rho_d, theta_bar)
        theta_tilde_before, self.theta_tilde = self.theta_tilde, s_tilde * self.rho_bar
        self.rho_d = c_tilde * self.rho_bar
        self.beta_d = -s_tilde * self.beta_d + c_tilde * beta_hat
        self.tau_tilde = (zeta_before - theta_tilde_before * self.tau_tilde) / rho_tilde
        tau_d = (self.zeta - self.theta_tilde * self.tau_tilde) / self.rho_d
        self.residuals[self.active] = np.hypot(self.beta_d - tau_d, self.beta_dd)

    def _drop_finished(self, beta: HostArray) -> None:
        """Drop the columns whose residuals have met the targets, or cannot decrease further."""
        own = self.active
        residuals, gradients = self.residuals[own], np.abs(self.zeta_bar)  # ||r||, ||A^H r||
        smallest = np.minimum(self.smallest, np.minimum(self.rho_bar, self.largest))
        met = residuals <= self.targets[own]
        tiny = SMALLEST_RATIO * self.eps * self.largest
        minimal = gradients <= np.maximum(self.rtol * smallest, tiny) * residuals
        ended = (beta <= self.eps * self.largest) | (self.alpha <= self.eps * self.largest)
        self.least_squares[own] = ~met & (minimal | ended)
        self.drop(met | minimal | ended)


def _lengths(space: VectorSpace, A: CountedOperator, X: Array) -> HostArray:
    """The norms of the columns of a block of matvecs with A."""
    lengths = to_host(space.norms(X))
    A.require_finite(lengths)
    return lengths


def _scaled(space: VectorSpace, X: Array, lengths: HostArray) -> Array:
    """The columns of X divided by their lengths; those of length 0 remain zero."""
    return X * space.asarray(1 / np.where(lengths > 0, lengths, 1.0))[None, :]


def _rotation(a: HostArray, b: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """c, s and r > 0 with [c s; -s c] [a; b] = [r; 0], for pairs that are not both zero."""
    r = np.hypot(a, b)
    r = np.where(r > 0, r, np.finfo(float).tiny)
    return a / r, b / r, r
