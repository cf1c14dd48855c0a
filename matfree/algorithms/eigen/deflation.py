"""One set of eigenpairs for trace, diagonal and density: given, or computed on the spot."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from matfree.algorithms.eigen.eigsh import eigsh
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator, adopted
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.state_file import discard
from matfree.arguments import slices
from matfree.arrays import rounding, to_host
from matfree.errors import ConvergenceWarning
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult

_DEFLATION_RTOL = 1e-3
"""Residual, relative to ||A||, at which computed pairs are good enough to deflate with. At
1e-2 the smaller outliers of a spectrum that spans two decades are not told from its bulk,
and the bars grow by a half; below 1e-3 nothing is gained."""


@final
class Deflation:
    """Orthonormal vectors U and their Rayleigh quotients theta_i = u_i^H A u_i.

    Estimates that take U out are unbiased however rough it is as an eigenbasis; only their
    variance grows.

    Parameters
    ----------
    product : the operator, counted
    plan : with the pairs, or how many to compute
    """

    saved = ("found", "cost", "values", "vectors")
    by_row: ClassVar = {"vectors": 0}

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        self.A, self.space, self.plan = A, A.space, plan
        self.found = False
        self.cost = 0
        """Products spent on them here."""
        self.values: HostArray = np.zeros(0)
        self.vectors: Array = self.space.zeros(0)

    def find(self, budget: int, checkpoint: Checkpoint) -> None:
        """Adopt the given pairs, or compute some for at most half of the budget.

        The search has its own checkpoint next to that of the run, until the latter holds the
        pairs.
        """
        if self.found:
            return
        before = self.A.num_matvecs
        if isinstance(self.plan.eigenpairs, EigenResult):
            self._take(self.plan.eigenpairs)
            path = None
        else:
            path = checkpoint.sibling(".eigenpairs.npz")
            self._compute(self.plan.eigenpairs, budget, path)
        self.cost = self.A.num_matvecs - before
        self.found = True
        checkpoint.save()
        if path is not None:
            discard(path, self.space)

    def _take(self, pairs: EigenResult) -> None:
        """Given pairs, whose values hold here if one product says so.

        The pairs of a nearby operator (the last epoch's) still point the right way, but
        their values would be a bias: then a product a vector gives those of this one.
        """
        self.values = np.asarray(pairs.values, dtype=np.float64)
        self.vectors = adopted(self.space, pairs.vectors, "eigenpairs.vectors")
        residual = sampled_residual(self.A, self.values, self.vectors, self.plan.seed)
        allowed = 2 * float(np.linalg.norm(pairs.residuals))
        allowed += rounding(self.space.xp, self.space.dtype)
        if residual <= allowed * pairs.norm:
            return
        quotients = []
        for part in slices(len(self.values), self.plan.block_size):
            U = self.vectors[:, part]
            quotients.append(to_host(self.space.dots(U, self.A(U))).real)
        self.values = np.concatenate(quotients)
        self.A.require_finite(self.values)

    def _compute(self, count: int, budget: int, checkpoint: Path | None) -> None:
        """The largest in magnitude, to a rough tolerance."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # rough is what was asked for
            pairs = eigsh(
                self.A.operator,
                min(count, self.space.size),
                rtol=_DEFLATION_RTOL,
                max_matvecs=None if self.plan.num_probes is not None else max(1, budget // 2),
                verify=False,
                seed=self.plan.seed,
                checkpoint=checkpoint,
            )
        self.A.num_matvecs += pairs.num_matvecs
        self.values, self.vectors = pairs.values, pairs.vectors


def sampled_residual(A: CountedOperator, values: HostArray, vectors: Array, seed: int) -> float:
    """||A u - U diag(theta) U^H u|| for a random unit vector u in the span of U.

    One product tells the pairs of another operator.
    """
    space = A.space
    mix = np.random.default_rng(seed).standard_normal((len(values), 1))
    mix /= np.linalg.norm(mix)
    here = A(vectors @ space.asarray(mix))
    residual = to_host(space.norms(here - vectors @ space.asarray(values[:, None] * mix)))
    A.require_finite(residual)
    return float(residual[0])
