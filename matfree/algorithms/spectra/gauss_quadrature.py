"""Gauss quadratures of probes by the Lanczos recurrence."""

from __future__ import annotations

from typing import final

import numpy as np

from matfree.algorithms.krylov.recurrence import Recurrence, Reorthogonalize
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.spectra.deflated_operator import Complement
from matfree.arrays import rounding
from matfree.protocol import Array
from matfree.results import Quadrature, Tridiagonal


@final
class LanczosQuadrature:
    """Gauss quadratures of probes by the Lanczos recurrence.

    Parameters
    ----------
    complement : what is left of the operator
    num_steps : int
    reorthogonalize : {"full", "half", "none"}
    """

    method = "lanczos"
    saved = ("recurrence",)

    def __init__(
        self, complement: Complement, num_steps: int, reorthogonalize: Reorthogonalize
    ) -> None:
        self.complement, self.reorthogonalize = complement, reorthogonalize
        self.num_steps = min(num_steps, complement.size)
        self.node_error = 0.0  # the largest that a basis in 16 bits explains
        self.recurrence: Recurrence | None = None
        self.rounding = rounding(complement.space.xp, complement.space.dtype)

    def __call__(self, V: Array, checkpoint: Checkpoint) -> list[Quadrature]:
        """The quadrature of each column's measure."""
        if self.num_steps == 0:  # everything is known
            return [Quadrature(np.zeros(0), np.zeros(0), np.zeros(0))] * V.shape[1]
        T = self._factorized(V, checkpoint)
        self.node_error = max(self.node_error, *T.node_errors, 0.0)
        return [gauss_rule(T, p, self.num_steps, self.rounding) for p in range(V.shape[1])]

    def _factorized(self, V: Array, checkpoint: Checkpoint) -> Tridiagonal:
        """The recurrences of a block of probes, kept in the checkpoint from look to look."""
        recurrence = Recurrence(
            self.complement.A,
            V,
            self.num_steps,
            reorthogonalize=self.reorthogonalize,
            keep_basis=False,
        )
        checkpoint.take_up("quadrature.recurrence", recurrence)
        self.recurrence = recurrence
        while not recurrence.finished:
            recurrence.advance()
            checkpoint.save()
        self.recurrence = None
        return recurrence.result()


def gauss_rule(T: Tridiagonal, p: int, num_steps: int, rounding: float) -> Quadrature:
    """The quadrature of one start vector; all of its nodes are exact where it broke down.

    But for what a basis in 16 bits moves them by.
    """
    rule = T.ritz(p)
    ended = (
        len(rule.nodes) < num_steps or T.residual_norms[p] <= rounding * np.abs(rule.nodes).max()
    )
    exact = np.full_like(rule.residuals, T.node_error(p))
    return rule._replace(residuals=exact) if ended else rule
