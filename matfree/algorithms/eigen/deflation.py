"""The eigenpairs with which traces and diagonals are deflated: given by the user, or computed."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

import numpy as np

from matfree.algorithms.eigen.arguments import Tolerance
from matfree.algorithms.eigen.eigsh import BLOCK_SIZE, find_eigenpairs
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator, converted_block
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.state_file import discard
from matfree.arguments import require_whole, slices
from matfree.arrays import rounding, to_host
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult

_DEFLATION_RTOL = 1e-3
"""The residual, relative to ||A||, to which eigenpairs are computed for deflation. At 1e-2 the
smaller outliers of a spectrum that spans two decades are not separated from its bulk, and
standard errors grow by a half; below 1e-3 nothing is gained."""


@final
class Deflation:
    """Orthonormal vectors U and their Rayleigh quotients theta_i = u_i^H A u_i.

    Estimates that project U out are unbiased however inaccurate U is as a basis of
    eigenvectors; only their variance grows.

    Parameters
    ----------
    A : CountedOperator
    plan : Plan
        It holds the eigenpairs, or the number of eigenpairs to compute.
    """

    saved = ("found", "cost", "values", "vectors")
    by_row: ClassVar = {"vectors": 0}

    def __init__(self, A: CountedOperator, plan: Plan) -> None:
        pairs = plan.eigenpairs
        if not isinstance(pairs, EigenResult):
            require_whole("eigenpairs, unless it is an EigenResult,", pairs)
        self.A, self.space, self.plan = A, A.space, plan
        self.found = False
        """Whether U is known."""
        self.cost = 0
        """The number of matvecs spent on U."""
        self.values: HostArray = np.zeros(0)
        self.vectors: Array = self.space.zeros(0)

    @property
    def least_matvecs(self) -> int:
        """The smallest number of matvecs for eigenpairs and one probe."""
        return 1 + (1 if isinstance(self.plan.eigenpairs, EigenResult) else self._block_size)

    @property
    def _block_size(self) -> int:
        return min(BLOCK_SIZE, self.space.size)

    def find(self, budget: int, checkpoint: Checkpoint) -> None:
        """Use the given eigenpairs, or compute some for at most half of the budget.

        The eigenvalue search has a checkpoint file of its own next to that of the run. It is
        deleted as soon as the checkpoint of the run contains the eigenpairs.

        Parameters
        ----------
        budget : int
            The number of matvecs of the run.
        checkpoint : Checkpoint
            The checkpoint of the run.
        """
        if self.found:
            return
        before = self.A.num_matvecs
        if isinstance(self.plan.eigenpairs, EigenResult):
            self._use(self.plan.eigenpairs, budget)
            path = None
        else:
            path = checkpoint.sibling(".eigenpairs")
            self._compute(self.plan.eigenpairs, budget, path)
        # The matvec by which a checkpoint identifies the operator is not part of the budget.
        self.cost = min(self.A.num_matvecs - before, budget - 1)
        self.found = True
        checkpoint.save()
        if path is not None:
            discard(path, self.space, self.plan.seed)

    def _use(self, pairs: EigenResult, budget: int) -> None:
        """Use given eigenpairs, whose values are recomputed if they belong to another operator.

        Eigenvectors of a nearby operator, such as that of the last epoch, still reduce the
        variance, but their eigenvalues would bias the estimate. One matvec detects this case;
        one matvec per vector then yields the Rayleigh quotients of A, of as many vectors as the
        budget permits besides one probe.
        """
        self.values = np.asarray(pairs.values, dtype=np.float64)
        self.vectors = converted_block(self.space, pairs.vectors, "eigenpairs.vectors")
        residual = sampled_residual(self.A, self.values, self.vectors, self.plan.seed)
        allowed = 2 * float(np.linalg.norm(pairs.residuals))
        allowed += rounding(self.space.xp, self.space.dtype)
        if residual <= allowed * pairs.norm:
            return
        if self.plan.num_probes is None:
            self.vectors = self.vectors[:, : max(0, budget - 2)]
        quotients = [np.zeros(0)]
        for part in slices(self.vectors.shape[1], self.plan.block_size):
            U = self.vectors[:, part]
            quotients.append(to_host(self.space.dots(U, self.A(U))).real)
        self.values = np.concatenate(quotients)
        self.A.require_finite(self.values)

    def _compute(self, num_pairs: int, budget: int, checkpoint: Path | None) -> None:
        """Compute the eigenpairs that are largest in magnitude, to a loose tolerance.

        They are at most as many as half of the budget suffices for.
        """
        limit = None
        if self.plan.num_probes is None:
            limit = max(self._block_size, budget // 2)
            num_pairs = min(num_pairs, limit - limit % self._block_size)
        # Inaccurate vectors cost variance only, so that there is no warning.
        A = CountedOperator(self.A.operator, remedy=self.A.remedy)
        pairs = find_eigenpairs(
            A,
            min(num_pairs, self.space.size),
            which="LM",
            tolerance=Tolerance.of(A, _DEFLATION_RTOL),
            max_matvecs=limit,
            verify=False,
            recompute=False,
            seed=self.plan.seed,
            checkpoint=checkpoint,
        )
        self.A.num_matvecs += pairs.num_matvecs
        self.values, self.vectors = pairs.values, pairs.vectors


def sampled_residual(A: CountedOperator, values: HostArray, vectors: Array, seed: int) -> float:
    """||A u - U diag(theta) U^H u|| for a random unit vector u in the range of U.

    One matvec, instead of one per vector, detects eigenpairs of another operator.

    Parameters
    ----------
    A : CountedOperator
    values : (k,) float64, the eigenvalues theta
    vectors : (rows, k), the orthonormal eigenvectors U
    seed : int
        The seed of the coefficients of u.
    """
    space = A.space
    coefficients = np.random.default_rng(seed).standard_normal((len(values), 1))
    coefficients /= np.linalg.norm(coefficients)
    Au = A(vectors @ space.asarray(coefficients))
    R = Au - vectors @ space.asarray(values[:, None] * coefficients)
    residual = to_host(space.norms(R))
    A.require_finite(residual)
    return float(residual[0])
