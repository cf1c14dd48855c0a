r"""Gauss quadratures of spectral measures by the Lanczos recurrence.

m steps from a unit vector v give a Jacobi matrix T of order m. Its eigenvalues theta_j, and
the squares tau_j of the first components of its unit eigenvectors, satisfy

.. math:: v^H p(A) v = \sum_j \tau_j p(\theta_j) \quad \text{for polynomials } p
    \text{ of degree} \le 2 m - 1.

References
----------
G. H. Golub, J. H. Welsch (1969), doi:10.1090/S0025-5718-69-99647-1.
"""

from __future__ import annotations

from typing import final

import numpy as np

from matfree.algorithms.krylov.recurrence import Recurrence, Reorthogonalize
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.spectra.deflated_operator import DeflatedOperator
from matfree.arrays import rounding
from matfree.protocol import Array, HostArray
from matfree.results import Quadrature, Tridiagonal


@final
class LanczosQuadrature:
    """Gauss quadratures of the spectral measures of blocks of probes.

    Parameters
    ----------
    deflated : DeflatedOperator
    num_steps : int
        Lanczos steps per probe; at most as many as there are unknown eigenvalues.
    reorthogonalize : {"full", "half", "none"}
    """

    method = "lanczos"
    saved = ("recurrence",)

    def __init__(
        self, deflated: DeflatedOperator, num_steps: int, reorthogonalize: Reorthogonalize
    ) -> None:
        self.deflated, self.reorthogonalize = deflated, reorthogonalize
        self.num_steps = min(num_steps, deflated.size)
        self.node_error = 0.0
        """The largest error of a node that is due to a basis in 16-bit numbers."""
        self.recurrence: Recurrence | None = None
        self.coefficients: list[HostArray] = []
        """The diagonal and the off-diagonal of T of the latest probes, (2, steps) each."""
        self.rounding = rounding(deflated.space.xp, deflated.space.dtype)

    def __call__(self, V: Array, checkpoint: Checkpoint) -> list[Quadrature]:
        """The quadrature of the spectral measure of each column of V."""
        if self.num_steps == 0:  # all eigenvalues are known
            self.coefficients = [np.zeros((2, 0))] * V.shape[1]
            return [Quadrature(np.zeros(0), np.zeros(0), np.zeros(0))] * V.shape[1]
        T = self._factorized(V, checkpoint)
        self.node_error = max(self.node_error, *T.node_errors, 0.0)
        self.coefficients = [recurrence_coefficients(T, p) for p in range(V.shape[1])]
        return [gauss_rule(T, p, self.num_steps, self.rounding) for p in range(V.shape[1])]

    def _factorized(self, V: Array, checkpoint: Checkpoint) -> Tridiagonal:
        """The tridiagonal matrices of a block of probes, saved after every few steps."""
        recurrence = Recurrence(
            self.deflated.A,
            V,
            self.num_steps,
            reorthogonalize=self.reorthogonalize,
            keep_basis=False,
        )
        checkpoint.resume_object("quadrature.recurrence", recurrence)
        self.recurrence = recurrence
        while not recurrence.finished:
            recurrence.advance()
            checkpoint.save()
        self.recurrence = None
        return recurrence.result()


def gauss_rule(T: Tridiagonal, p: int, num_steps: int, rounding: float) -> Quadrature:
    """The quadrature of start vector p.

    After a breakdown of the recurrence the nodes are eigenvalues, up to the error that is due to
    a basis in 16-bit numbers.
    """
    rule = T.ritz(p)
    ended = (
        len(rule.nodes) < num_steps or T.residual_norms[p] <= rounding * np.abs(rule.nodes).max()
    )
    exact = np.full_like(rule.residuals, T.node_error(p))
    return rule._replace(residuals=exact) if ended else rule


def recurrence_coefficients(T: Tridiagonal, p: int) -> HostArray:
    """The diagonal and the off-diagonal of start vector p, (2, steps) float64.

    The off-diagonal has the norm of the last remainder at its end.
    """
    return np.stack((T.alphas[p], np.append(T.betas[p], T.residual_norms[p])))
