r"""MINRES: the least residuals in a Krylov space of a Hermitian operator, definite or not.

The Lanczos recurrence gives A V_k = V_{k+1} T_k with orthonormal vectors in the inner product of
the preconditioner P. A QR factorization of T_k by plane rotations is updated from step to step:

.. math:: \min_y \|\beta_1 e_1 - T_k y\|, \qquad x_k = V_k y_k.

If b is not in the range of A, then A r_k tends to zero, whereas r_k does not: the solution of the
least-squares problem is found.

References
----------
C. C. Paige, M. A. Saunders (1975), Solution of sparse indefinite systems of linear equations,
doi:10.1137/0712047.
"""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.active_columns import SMALLEST_RATIO, ColumnwiseSolver
from matfree.algorithms.solving.solver import Precondition
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray

_REGROWTH = 100.0
"""The factor by which ||A r|| / ||r|| has to grow again to show that rounding dominates it."""


@final
class Minres(ColumnwiseSolver):
    """The state of MINRES; see the module.

    Parameters
    ----------
    A, R, norms, targets
        As for :class:`Solver`.
    precondition : function, optional
    rtol : float
        The size of ||A r|| / (sigma ||r||), where sigma is an estimate of the smallest nonzero
        singular value, at which r is orthogonal to the range of A.
    """

    name = "MINRES"
    blocks: tuple[str, ...] = ("x", "r", "before", "y", "w", "w_before")
    numbers = (
        *("beta", "beta_before", "c", "s", "d_bar", "epsilon", "phi_bar"),
        *("ratio", "least_ratio", "gamma", "largest", "smallest"),
    )
    saved = (
        *("X", "active", "residuals", "least_squares", "norm", "num_steps", "is_exhausted"),
        *blocks,
        *numbers,
        "true_r",
    )
    by_row: ClassVar = dict.fromkeys(("X", *blocks, "true_r"), 0)

    def __init__(
        self,
        A: CountedOperator,
        R: Array,
        norms: HostArray,
        targets: HostArray,
        precondition: Precondition | None = None,
        *,
        rtol: float,
    ) -> None:
        super().__init__(A, R, norms, targets)
        k = len(norms)
        self.precondition, self.rtol = precondition, rtol
        self.r, self.before = R, self.space.zeros(k)
        self.true_r = self.space.zeros(0) if precondition is None else R
        """(rows, active): the residuals; without a preconditioner, their norms are known."""
        self.blocks = self.blocks if precondition is None else (*self.blocks, "true_r")
        self.w = self.w_before = self.space.zeros(k)
        self.beta_before = np.zeros(k)
        self.y, self.beta = self._preconditioned(R)
        self.phi_bar = self.beta.copy()
        self.c, self.s = -np.ones(k), np.zeros(k)
        self.d_bar, self.epsilon, self.largest = np.zeros(k), np.zeros(k), np.zeros(k)
        self._first: Array | None = None
        self.gamma = self.smallest = self.least_ratio = np.full(k, np.inf)
        self.ratio = np.full(k, np.inf)
        """(active,): ||A r|| / ||r||, of the residual of the step before."""

    def advance(self) -> None:
        space = self.space
        v = self.y * space.asarray(1 / self.beta)[None, :]
        Av = self.A(v)
        y = Av
        if self.num_steps:
            y = Av - self.before * space.asarray(self.beta / self.beta_before)[None, :]
        products = to_host(space.dots(v, y))
        self.A.require_finite(products)
        alpha = products.real
        if self.precondition is None:
            self.least_quotient = min(self.least_quotient, float(alpha.min()))
        y = y - self.r * space.asarray(alpha / self.beta)[None, :]
        self._require_hermitian(v, Av, products)
        self.before, self.r = self.r, y
        self.beta_before = self.beta
        self.y, self.beta = self._preconditioned(y)
        self.largest = np.maximum(self.largest, np.hypot(np.abs(alpha), self.beta))
        self.norm = max(self.norm, float(np.max(self.largest)))
        self.beta = np.where(self.beta <= self.eps * self.largest, 0.0, self.beta)
        self._rotate(v, alpha)
        self.num_steps += 1
        self._drop_finished()

    def _rotate(self, v: Array, alpha: HostArray) -> None:
        """Apply the last rotations to the new column of T, and update the solution."""
        space = self.space
        delta = self.c * self.d_bar + self.s * alpha
        g_bar = self.s * self.d_bar - self.c * alpha
        self.d_bar, epsilon = -self.c * self.beta, self.s * self.beta
        # ||A r|| / ||r|| for the residual before this step; r may be the least-squares residual.
        self.ratio = np.hypot(g_bar, self.d_bar)
        gamma = np.hypot(g_bar, self.beta)
        usable = gamma > self.eps * self.largest
        self.smallest = np.minimum(self.smallest, self.gamma)
        self.gamma = gamma = np.where(usable, gamma, 1.0)
        self.c, self.s = g_bar / gamma, self.beta / gamma
        phi = np.where(usable, self.c * self.phi_bar, 0.0)
        w = v - self.w_before * space.asarray(self.epsilon)[None, :]
        w = (w - self.w * space.asarray(delta)[None, :]) * space.asarray(1 / gamma)[None, :]
        self.epsilon, self.w_before, self.w = epsilon, self.w, w
        self.x = self.x + w * space.asarray(phi)[None, :]
        self.phi_bar = np.where(usable, self.s * self.phi_bar, self.phi_bar)
        if self.precondition is None:
            self.residuals[self.active] = self.phi_bar
            return
        safe = np.where(self.beta > 0, self.beta, 1.0)
        step = np.where(usable, self.phi_bar * self.c, 0.0) / safe
        keep = np.where(usable, self.s**2, 1.0)
        r = self.true_r * space.asarray(keep)[None, :]
        self.true_r = r - self.r * space.asarray(step)[None, :]
        self.residuals[self.active] = to_host(space.norms(self.true_r))

    def _drop_finished(self) -> None:
        """Drop the columns whose residuals have met the targets, or cannot decrease further."""
        own = self.active
        # ||A r|| >= sigma ||r|| for a compatible system, where sigma is the smallest singular
        # value of the range. Rounding lets ||A r|| grow again after it has become small.
        self.least_ratio = np.minimum(self.least_ratio, self.ratio)
        tiny = SMALLEST_RATIO * self.eps * self.largest
        smallest = np.where(np.isfinite(self.smallest), self.smallest, 0.0)
        stuck = self.ratio <= np.maximum(self.rtol * smallest, tiny)
        was_small = _REGROWTH * self.least_ratio <= np.minimum(smallest, 1e-3 * self.largest)
        stuck |= was_small & (self.ratio > _REGROWTH * self.least_ratio)
        ended = self.beta == 0
        met = self.residuals[own] <= self.targets[own]
        self.least_squares[own] = ~met & (stuck | ended)
        self.drop(met | stuck | ended)

    def _preconditioned(self, R: Array) -> tuple[Array, HostArray]:
        """P R and the numbers (r^H P r)^(1/2)."""
        if self.precondition is None:
            return R, to_host(self.space.norms(R))
        PR = self.precondition(R)
        squares = to_host(self.space.dots(R, PR)).real
        self.A.require_finite(squares)
        if squares.min(initial=0.0) < 0:
            raise ValueError(
                "preconditioner must be Hermitian and positive definite: r^H P r is "
                f"{squares.min():.1e} for a residual r; pass an approximation P of the inverse of "
                "|A|, such as |A|^(-1) on a subspace."
            )
        return PR, np.sqrt(squares)

    def _require_hermitian(self, v: Array, Av: Array, products: HostArray) -> None:
        """Compare v_1^H A v_2 with v_2^H A v_1, which is beta_2, and v^H A v with its real part."""
        defects = np.abs(products.imag)
        size = max(self.norm, float((np.abs(products) + self.beta).max()))
        known = self._first if self.num_steps == 1 else None
        if known is not None and known.shape[1] == v.shape[1]:
            defects = defects + np.abs(to_host(self.space.dots(known, Av)) - self.beta)
        self._first = v if self.num_steps == 0 else None
        if size > 0:
            self.A.require_hermitian(float(defects.max()) / size)
