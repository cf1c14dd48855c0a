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

from typing import Any, final

import numpy as np

from matfree.algorithms.deflation import require_rows
from matfree.algorithms.eigsh import eigsh
from matfree.algorithms.hutchpp import outside
from matfree.algorithms.products import HostArray, Products
from matfree.operators import FunctionOperator
from matfree.protocol import Array, ProbeKind
from matfree.results import EigenResult, Quadrature

GOOD = 1e-3
"""Residual, relative to ||A||, up to which a pair is taken out: the eigenvalues on either
side are then off by its square."""


@final
class Complement:
    """Products and probes outside the eigenvectors; everything, where there are none.

    Parameters
    ----------
    A : Hermitian operator
    eigenpairs : EigenResult or int
        Pairs that are known, of which the converged ones are used; or how many of the
        largest in magnitude to compute first.
    seed : int
    """

    def __init__(self, A: Any, eigenpairs: EigenResult | int, *, seed: int) -> None:
        whole = Products(A)
        self.space = whole.space
        pairs = _pairs(whole, eigenpairs, seed)
        good = np.zeros(0, dtype=int) if pairs is None else _usable(pairs)
        self.values: HostArray = np.zeros(0)
        self.product = whole
        if pairs is not None and good.size:
            xp = self.space.xp
            vectors = xp.asarray(pairs.vectors, device=self.space.device)
            select = xp.asarray(good, device=self.space.device)
            self.U = xp.astype(xp.take(vectors, select, axis=1), self.space.dtype)
            self.values = np.sort(pairs.values[good])
            self.product = Products(self._projected(whole))
        self.product.num_matvecs = whole.num_matvecs

    @property
    def size(self) -> int:
        """The number of eigenvalues that are left."""
        return self.space.size - len(self.values)

    def probes(self, count: int, *, seed: int, start: int, kind: ProbeKind, stream: int) -> Array:
        """Random probes, projected."""
        V = self.space.probes(count, seed=seed, start=start, kind=kind, stream=stream)
        for _ in range(2 if len(self.values) else 0):  # once leaves rounding of the whole length
            V = outside(self.space, self.U, V)
        return V

    def whole(self, rule: Quadrature) -> Quadrature:
        """A quadrature of what is left, with the known eigenvalues put back."""
        k, n = len(self.values), self.space.size
        nodes = np.concatenate((rule.nodes, self.values))
        weights = np.concatenate((rule.weights * (n - k) / n, np.full(k, 1 / n)))
        residuals = np.concatenate((rule.residuals, np.zeros(k)))
        order = np.argsort(nodes, kind="stable")
        return Quadrature(nodes[order], weights[order], residuals[order])

    def _projected(self, whole: Products) -> FunctionOperator:
        def matmat(X: Array) -> Array:
            return outside(self.space, self.U, whole.operator.matmat(X))

        return FunctionOperator(
            lambda x: matmat(x[:, None])[:, 0],
            space=self.space,
            matmat=matmat,
            name=f"{whole.operator!r} outside {len(self.values)} eigenvectors",
        )


def _pairs(whole: Products, eigenpairs: EigenResult | int, seed: int) -> EigenResult | None:
    """The pairs given, checked, or those asked for."""
    if isinstance(eigenpairs, EigenResult):
        require_rows(eigenpairs, whole)
        if not _usable(eigenpairs).size:
            raise ValueError(
                f"eigenpairs has no pair with a residual within {GOOD:g} of ||A|| (least: "
                f"{eigenpairs.residuals.min(initial=np.inf):.1e}); compute it with a smaller rtol."
            )
        return eigenpairs
    n = whole.space.size
    if isinstance(eigenpairs, bool) or not hasattr(eigenpairs, "__index__") or eigenpairs < 0:
        raise ValueError(
            f"eigenpairs must be an EigenResult or a number of pairs: got {eigenpairs!r}."
        )
    if eigenpairs == 0:
        return None
    pairs = eigsh(whole.operator, min(eigenpairs, n), verify=False, seed=seed)
    whole.num_matvecs += pairs.num_matvecs
    return pairs


def _usable(pairs: EigenResult) -> HostArray:
    """The pairs that are eigenpairs."""
    return np.flatnonzero(pairs.residuals <= GOOD)
