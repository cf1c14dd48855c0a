r"""Preconditioners of ``solve``: given operators, and the randomized Nystrom preconditioner.

A Nystrom approximation of rank r with the smallest eigenvalue lambda_r leaves a preconditioned
operator with a condition number of about :math:`1 + \lambda_r / \sigma`, so that k systems need
about

.. math:: r + \tfrac{k}{2} \log(2 / \mathtt{rtol}) \sqrt{1 + \lambda_r / \sigma}

matvecs. The sketch grows while a larger rank reduces this number.

References
----------
Z. Frangella, J. A. Tropp, M. Udell (2023), Randomized Nystrom preconditioning,
doi:10.1137/21M1466244.
"""

from __future__ import annotations

import math
from typing import ClassVar, final

import numpy as np

from matfree import probes
from matfree.algorithms.low_rank.nystrom import nystrom_eigenpairs, nystrom_matrices
from matfree.algorithms.low_rank.range_sketch import RangeSketch
from matfree.algorithms.low_rank.shrinkage import Shrinkage, shrunk
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.solving.solve_options import SolveOptions
from matfree.arguments import block_size_for
from matfree.arrays import epsilon
from matfree.errors import OperatorError
from matfree.operators import Operator, aslinearoperator
from matfree.operators.base import require_compatible
from matfree.protocol import Array, HostArray

_FIRST_RANK = 10
_RANK_GROWTH = 1.5
_LEAST_SAVING = 0.07
"""The fraction of all matvecs that a growth of the rank is expected to save, at least."""

_SHARED_WORK = 0.75
"""The matvecs of several right-hand sides relative to those of single ones, about."""

_DEFAULT_RANK = 50
"""The rank if the smallest eigenvalue of the system, and with it the best rank, is unknown."""

_LARGEST_RANK = 500
"""The largest rank that is chosen automatically, because every vector is stored."""

_NYSTROM_USER = 'preconditioner="nystrom" needs {}; pass preconditioner=None.'


@final
class NystromPreconditioner:
    """P = (lambda_r + sigma) U (Lambda + sigma I)^-1 U^H + I - U U^H, once it is computed.

    Parameters
    ----------
    A : CountedOperator
        A + shift I, which counts the matvecs of the sketch.
    operator : Operator
        A, which is positive semidefinite.
    shift : float
        The number sigma.
    smallest : float, optional
        A positive number that the eigenvalues of A + shift I do not fall below by much.
    rank : int, optional
        The rank; None chooses it.
    num_columns : int
        The number of right-hand sides.
    rtol : float
        The tolerance of the systems.
    most : int
        The largest rank that the budget permits.
    seed : int
    """

    saved = ("vectors", "weights", "is_known")
    by_row: ClassVar = {"vectors": 0}

    def __init__(
        self,
        A: CountedOperator,
        operator: Operator,
        *,
        shift: float,
        smallest: float | None,
        rank: int | None,
        num_columns: int,
        rtol: float,
        most: int,
        seed: int,
    ) -> None:
        self.A, self.operator, self.shift, self.smallest = A, operator, shift, smallest
        self.rank_wanted, self.num_columns, self.most = rank, num_columns, most
        self.steps = max(1.0, 0.5 * math.log(2 / max(rtol, 1e-16)))
        self.seed, self.is_known = seed, False
        self.vectors: Array = A.space.zeros(0)
        self.weights: HostArray = np.zeros(0)

    @property
    def rank(self) -> int:
        """The number of eigenvectors."""
        return len(self.weights)

    def __call__(self, X: Array) -> Array:
        """P X."""
        return shrunk(self.A.space, self.vectors, self.weights, 1.0, X)

    @classmethod
    def make(
        cls, A: CountedOperator, operator: Operator, options: SolveOptions, k: int, seed: int
    ) -> NystromPreconditioner:
        """The preconditioner for k right-hand sides that the options ask for."""
        shift = float(np.real(options.shift))
        smallest = options.smallest or (shift if shift > 0 else None)
        most = min(A.space.size, (options.budget(operator, k) - 2 * k) // 2)
        if options.rank is None:
            most = min(most, _LARGEST_RANK)
        return cls(
            A,
            operator,
            shift=shift,
            smallest=smallest,
            rank=options.rank,
            num_columns=k,
            rtol=options.rtol,
            most=max(1, most),
            seed=seed,
        )

    def operator_form(self) -> Operator:
        """The preconditioner as an operator, after it was computed."""
        return Shrinkage(self.A.space, self.vectors, self.weights, 1.0)

    def find(self) -> None:
        """Compute the approximation, unless a checkpoint contained it."""
        if self.is_known:
            return
        inner = CountedOperator(self.operator)
        width = block_size_for(self.A.space.size, inner.block_size(None))
        # Signs are cheaper to draw than Gaussians, and every growth of the sketch draws them again.
        plan = Plan(None, self.most, None, None, width, self.seed, "rademacher")
        sketch = RangeSketch(inner, plan, stream=probes.SKETCH)
        count = self._first_rank()
        while True:
            sketch.complete(count, lambda: None)
            values, U = self._eigenpairs(sketch)
            following = self._next_rank(count, values)
            if following is None:
                break
            count = following
        self.A.num_matvecs += inner.num_matvecs
        shifted = values + self.shift
        # Rounding would make r^H P r negative if the weights differed by more than 1 / eps.
        eps = epsilon(self.A.space.xp, self.A.space.dtype)
        keep = shifted > 1e3 * eps * np.max(shifted, initial=0.0)
        self.weights = np.min(shifted[keep], initial=np.inf) / shifted[keep]
        self.vectors = sketch.Q @ self.A.space.asarray(U[:, keep])
        self.is_known = True

    def _eigenpairs(self, sketch: RangeSketch) -> tuple[HostArray, HostArray]:
        """The eigenvalues of the approximation, (r,), and the coordinates of its vectors."""
        space = self.A.space
        eps = epsilon(space.xp, space.dtype)
        return nystrom_eigenpairs(nystrom_matrices(sketch), space.size, eps, user=_NYSTROM_USER)

    def _first_rank(self) -> int:
        wanted = self.rank_wanted
        if wanted is None:
            wanted = _DEFAULT_RANK if self.smallest is None else _FIRST_RANK
        return max(1, min(wanted, self.most))

    def _next_rank(self, rank: int, values: HostArray) -> int | None:
        """The next rank to try; None if a larger one would not reduce the matvecs."""
        following = min(self.most, math.ceil(_RANK_GROWTH * rank))
        if self.rank_wanted is not None or self.smallest is None or following <= rank:
            return None
        if len(values) < rank or values[-1] <= 0:  # the whole range is known
            return None
        # The last eigenvalues of a sketch are too small: the decay is that of the others.
        low, high = values[len(values) // 3], values[(9 * len(values)) // 10]
        rate = math.log(max(low / high, 1.0)) / (9 * rank / 10 - rank / 3)
        expected = float(values[-1]) * math.exp(-rate * (following - rank))
        now, then = self._cost(rank, float(values[-1])), self._cost(following, expected)
        return following if then < (1 - _LEAST_SAVING) * now else None

    def _cost(self, rank: int, eigenvalue: float) -> float:
        """The expected number of matvecs for a rank with this smallest eigenvalue."""
        assert self.smallest is not None
        shared = 1.0 if self.num_columns == 1 else _SHARED_WORK
        condition = 1 + eigenvalue / self.smallest
        return rank + shared * self.num_columns * self.steps * math.sqrt(condition)


def given_preconditioner(A: CountedOperator, preconditioner: object) -> Operator:
    """The operator that the user gave as a preconditioner.

    Raises
    ------
    OperatorError
        It has another shape or other vectors than A.
    """
    P = aslinearoperator(preconditioner)
    if P.shape != A.operator.shape:
        raise OperatorError(
            f"preconditioner must have the shape {A.operator.shape} of the operator: got {P.shape}."
        )
    require_compatible(A.space, P.space)
    return P
