r"""An operator restricted to the orthogonal complement of known eigenvectors.

Let U have k orthonormal eigenvectors with eigenvalues theta_i as columns, and P = I - U U^H. On
the range of P, the operator A has the other n - k eigenvalues. In expectation, the spectral
measure mu of a projected random vector P v gives equal weights to them, so that

.. math:: \frac1n \sum_{i=1}^n \delta(x - \lambda_i)
    = \frac1n \sum_{i=1}^k \delta(x - \theta_i) + \frac{n - k}{n} E[\mu_{P v}(x)],

and the known eigenvalues have no sampling error. The result of every matvec is projected again,
because otherwise rounding would restore the large eigenvalues within a few steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

import numpy as np

from matfree.algorithms.eigen.arguments import Tolerance
from matfree.algorithms.eigen.deflation import sampled_residual
from matfree.algorithms.eigen.eigsh import BLOCK_SIZE, eigsh, find_eigenpairs
from matfree.algorithms.eigen.orthogonal_complement import project_onto_complement
from matfree.algorithms.running.counted_operator import CountedOperator, converted_block
from matfree.algorithms.running.magnitude import RangeChecked
from matfree.arrays import epsilon
from matfree.operators import FunctionOperator, Operator
from matfree.protocol import Array, HostArray, ProbeKind
from matfree.results import EigenResult, Quadrature

MAX_RESIDUAL = 1e-3
"""The largest residual, relative to ||A||, of a pair that is deflated.

The eigenvalues of the deflated operator then have an error of the order of its square.
"""

_MATVEC_NOISE = 4.0  # machine epsilons times ||A||, as the norm of the rounding error of a matvec


@final
class DeflatedOperator:
    """Matvecs and probes projected onto the complement of known eigenvectors, if there are any.

    Parameters
    ----------
    A : CountedOperator
        A Hermitian operator. Once the eigenvectors are known, its matvecs are projected.
    seed : int
    """

    saved = ("found", "values", "U", "residuals", "cost")
    by_row: ClassVar = {"U": 0}

    def __init__(self, A: CountedOperator, *, seed: int) -> None:
        self.A, self.space, self.seed = A, A.space, seed
        self.found = False
        self.values: HostArray = np.zeros(0)
        self.U: Array = self.space.zeros(0)
        self.residuals: HostArray = np.zeros(0)
        """The residual norms of the pairs."""
        self.cost = 0
        """The number of matvecs spent on the pairs."""

    def find(
        self,
        eigenpairs: EigenResult | int,
        checkpoint: Path | None = None,
        *,
        max_matvecs: int | None = None,
    ) -> None:
        """Deflate eigenpairs, unless a checkpoint already contained them.

        Parameters
        ----------
        eigenpairs : EigenResult or int
            Known pairs, of which the converged ones are used; or how many of the largest in
            magnitude to compute.
        checkpoint : path, optional
            A checkpoint for the computation of the pairs.
        max_matvecs : int, optional
            The largest number of matvecs for the pairs, of which it reduces the number.

        Raises
        ------
        ValueError
            ``eigenpairs`` is neither, has not converged, or belongs to another operator.
        """
        if not self.found:
            before = self.A.num_matvecs
            self._find(eigenpairs, checkpoint, max_matvecs)
            self.cost = self.A.num_matvecs - before
        self.found = True
        if len(self.values):
            self.A.operator = self._projected(self.A.operator)

    def _find(
        self, eigenpairs: EigenResult | int, checkpoint: Path | None, max_matvecs: int | None
    ) -> None:
        """Use the given pairs, or compute some."""
        if isinstance(eigenpairs, EigenResult):
            self._take(eigenpairs)
            self._require_residual(eigenpairs.norm)
        elif isinstance(eigenpairs, bool) or not hasattr(eigenpairs, "__index__") or eigenpairs < 0:
            raise ValueError(
                f"eigenpairs must be an EigenResult or a number of pairs: got {eigenpairs!r}."
            )
        elif eigenpairs > 0:
            count, A = min(eigenpairs, self.space.size), self.A.operator
            if max_matvecs is None:
                pairs = eigsh(A, count, verify=False, seed=self.seed, checkpoint=checkpoint)
            else:
                pairs = self._affordable(count, checkpoint, max_matvecs)
            self.A.num_matvecs += pairs.num_matvecs
            if np.any(pairs.residuals <= MAX_RESIDUAL):
                self._take(pairs)

    def _affordable(self, count: int, checkpoint: Path | None, limit: int) -> EigenResult:
        """As many eigenpairs as the matvecs permit, without a warning if some do not converge."""
        A = CountedOperator(self.A.operator, remedy=self.A.remedy)
        width = min(BLOCK_SIZE, self.space.size)
        return find_eigenpairs(
            A,
            max(1, min(count, limit - limit % width)),
            which="LM",
            tolerance=Tolerance.of(A, None),
            max_matvecs=limit,
            verify=False,
            recompute=False,
            seed=self.seed,
            checkpoint=checkpoint,
        )

    @property
    def size(self) -> int:
        """The number of eigenvalues that are not known."""
        return self.space.size - len(self.values)

    def probes(self, count: int, *, seed: int, start: int, kind: ProbeKind, stream: int) -> Array:
        """Random probes, projected onto the complement, (rows, count)."""
        V = self.space.probes(count, seed=seed, start=start, kind=kind, stream=stream)
        # One projection would leave rounding errors relative to the norm of the unprojected probe.
        for _ in range(2 if len(self.values) else 0):
            V = project_onto_complement(self.space, self.U, V)
        return V

    def with_known(self, rule: Quadrature) -> Quadrature:
        """Add the known eigenvalues to a quadrature of the deflated operator."""
        k, n = len(self.values), self.space.size
        nodes = np.concatenate((rule.nodes, self.values))
        weights = np.concatenate((rule.weights * (n - k) / n, np.full(k, 1 / n)))
        residuals = np.concatenate((rule.residuals, np.zeros(k)))
        order = np.argsort(nodes, kind="stable")
        return Quadrature(nodes[order], weights[order], residuals[order])

    def _take(self, pairs: EigenResult) -> None:
        """Use the pairs that have converged."""
        good = np.flatnonzero(pairs.residuals <= MAX_RESIDUAL)
        if not good.size:
            least = pairs.residuals.min(initial=np.inf)
            raise ValueError(
                f"eigenpairs must have a pair with a residual of at most {MAX_RESIDUAL:g} ||A||: "
                f"the smallest is {least:.1e} ||A||; compute them with a smaller rtol."
            )
        good = good[np.argsort(pairs.values[good], kind="stable")]
        vectors = converted_block(self.space, pairs.vectors, "eigenpairs.vectors")
        select = self.space.xp.asarray(good, device=self.space.device)
        self.U = self.space.xp.take(vectors, select, axis=1)
        self.values = np.asarray(pairs.values[good], dtype=np.float64)
        self.residuals = np.asarray(pairs.residuals[good], dtype=np.float64) * pairs.norm

    def _require_residual(self, norm: float) -> None:
        """Raise ValueError if the pairs belong to another operator."""
        residual = sampled_residual(self.A, self.values, self.U, self.seed)
        if residual > MAX_RESIDUAL * norm:
            raise ValueError(
                f"eigenpairs are not those of this operator: their residual is {residual:.1e}, "
                f"and ||A|| is {norm:.1e}; compute them again, with these as start of eigsh."
            )

    def _projected(self, operator: Operator) -> FunctionOperator:
        """The operator between two projections.

        The first one makes it Hermitian for all vectors. After a breakdown of the recurrence, the
        next vector is a normalized rounding error, and lies in the complement only in part.
        """
        space, xp, operator = self.space, self.space.xp, RangeChecked(operator)
        noise = _MATVEC_NOISE * epsilon(xp, space.dtype) * float(np.abs(self.values).max())

        def matmat(X: Array) -> Array:
            # The first projection is not bound to a name, so that its memory is free afterwards.
            Y = operator.matmat(project_onto_complement(space, self.U, X))
            Y = project_onto_complement(space, self.U, Y)
            # Where A is 0 on the complement, Y is a rounding error, and shows no symmetry.
            significant = space.norms(Y) > noise * space.norms(X)
            return Y * xp.astype(significant, Y.dtype)[None, :]

        return FunctionOperator(
            lambda x: matmat(x[:, None])[:, 0],
            space=self.space,
            matmat=matmat,
            name=f"{operator!r} outside {len(self.values)} eigenvectors",
        )
