r"""An operator outside eigenvectors that are known: what is left for the probes to see.

With orthonormal eigenvectors U and P = I - U U^H, the eigenvalues of A on the range of P
are those that are left. A random vector projected by P sees the n - k of them alike, so
that

    (1/n) sum_i delta(x - lambda_i) = (1/n) sum_known delta(x - theta)
                                      + (n - k)/n  E[measure of P v],

and the known ones have no sampling error. Products are projected each time: rounding would
bring the large eigenvalues back within a few steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

import numpy as np

from matfree.algorithms.eigen.deflation import sampled_residual
from matfree.algorithms.eigen.eigsh import eigsh
from matfree.algorithms.eigen.orthogonal_complement import project_onto_complement
from matfree.algorithms.running.counted_operator import CountedOperator, adopted
from matfree.operators import FunctionOperator, Operator
from matfree.protocol import Array, HostArray, ProbeKind
from matfree.results import EigenResult, Quadrature

GOOD = 1e-3
"""Residual, relative to ||A||, up to which a pair is taken out: the eigenvalues on either
side are then off by its square."""


@final
class Complement:
    """Products and probes outside the eigenvectors; everything, where there are none.

    Parameters
    ----------
    product : a Hermitian operator, counted; once pairs are known its products are projected
    seed : int
    """

    saved = ("found", "values", "U")
    by_row: ClassVar = {"U": 0}

    def __init__(self, A: CountedOperator, *, seed: int) -> None:
        self.A, self.space, self.seed = A, A.space, seed
        self.found = False
        self.values: HostArray = np.zeros(0)
        self.U: Array = self.space.zeros(0)

    def find(self, eigenpairs: EigenResult | int, checkpoint: Path | None = None) -> None:
        """Take out pairs, unless that was done before an interruption.

        Parameters
        ----------
        eigenpairs : EigenResult or int
            Pairs that are known, of which the converged ones are used; or how many of the
            largest in magnitude to compute first.
        checkpoint : path, optional
            For the computation.
        """
        if not self.found:
            self._find(eigenpairs, checkpoint)
        self.found = True
        if len(self.values):
            self.A.operator = self._projected(self.A.operator)

    def _find(self, eigenpairs: EigenResult | int, checkpoint: Path | None) -> None:
        """Take given pairs, or compute them."""
        if isinstance(eigenpairs, EigenResult):
            self._take(eigenpairs)
            self._require_residual(eigenpairs.norm)
        elif isinstance(eigenpairs, bool) or not hasattr(eigenpairs, "__index__") or eigenpairs < 0:
            raise ValueError(
                f"eigenpairs must be an EigenResult or a number of pairs: got {eigenpairs!r}."
            )
        elif eigenpairs > 0:
            count, A = min(eigenpairs, self.space.size), self.A.operator
            pairs = eigsh(A, count, verify=False, seed=self.seed, checkpoint=checkpoint)
            self.A.num_matvecs += pairs.num_matvecs
            if np.any(pairs.residuals <= GOOD):
                self._take(pairs)

    @property
    def size(self) -> int:
        """The number of eigenvalues that are left."""
        return self.space.size - len(self.values)

    def probes(self, count: int, *, seed: int, start: int, kind: ProbeKind, stream: int) -> Array:
        """Random probes, projected."""
        V = self.space.probes(count, seed=seed, start=start, kind=kind, stream=stream)
        for _ in range(2 if len(self.values) else 0):  # once leaves rounding of the whole length
            V = project_onto_complement(self.space, self.U, V)
        return V

    def whole(self, rule: Quadrature) -> Quadrature:
        """A quadrature of what is left, with the known eigenvalues put back."""
        k, n = len(self.values), self.space.size
        nodes = np.concatenate((rule.nodes, self.values))
        weights = np.concatenate((rule.weights * (n - k) / n, np.full(k, 1 / n)))
        residuals = np.concatenate((rule.residuals, np.zeros(k)))
        order = np.argsort(nodes, kind="stable")
        return Quadrature(nodes[order], weights[order], residuals[order])

    def _take(self, pairs: EigenResult) -> None:
        """Those of the pairs that are eigenpairs."""
        good = np.flatnonzero(pairs.residuals <= GOOD)
        if not good.size:
            least = pairs.residuals.min(initial=np.inf)
            raise ValueError(
                f"eigenpairs has no pair with a residual within {GOOD:g} of ||A|| (least: "
                f"{least:.1e}); compute it with a smaller rtol."
            )
        good = good[np.argsort(pairs.values[good], kind="stable")]
        vectors = adopted(self.space, pairs.vectors, "eigenpairs.vectors")
        select = self.space.xp.asarray(good, device=self.space.device)
        self.U = self.space.xp.take(vectors, select, axis=1)
        self.values = np.asarray(pairs.values[good], dtype=np.float64)

    def _require_residual(self, norm: float) -> None:
        """Refuse the pairs of another operator."""
        residual = sampled_residual(self.A, self.values, self.U, self.seed)
        if residual > GOOD * norm:
            raise ValueError(
                f"eigenpairs are not those of this operator: their residual is {residual:.1e} "
                f"where ||A|| is {norm:.1e}; compute them again, with these as start of eigsh."
            )

    def _projected(self, whole: Operator) -> FunctionOperator:
        def matmat(X: Array) -> Array:
            return project_onto_complement(self.space, self.U, whole.matmat(X))

        return FunctionOperator(
            lambda x: matmat(x[:, None])[:, 0],
            space=self.space,
            matmat=matmat,
            name=f"{whole!r} outside {len(self.values)} eigenvectors",
        )
