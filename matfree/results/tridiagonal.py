"""Lanczos factorizations, and the Gauss quadratures that they define."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import scipy.linalg

from matfree.protocol import Array, HostArray
from matfree.results.record import Record, memory_rows


def tridiagonal_eigenpairs(alphas: HostArray, betas: HostArray) -> tuple[HostArray, HostArray]:
    """The eigenvalues, (m,) ascending, and eigenvectors, (m, m), of a symmetric tridiagonal matrix.

    Parameters
    ----------
    alphas : (m,) float64, its diagonal
    betas : (m - 1,) float64, the entries next to it
    """
    try:
        values, vectors = scipy.linalg.eigh_tridiagonal(alphas, betas)
    except np.linalg.LinAlgError:
        # LAPACK's solver for tridiagonal matrices fails on rare graded ones.
        values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, -1))
    return values, vectors


class Quadrature(NamedTuple):
    """A quadrature of the spectral measure of one vector, with a residual for each node."""

    nodes: np.ndarray[Any, Any]
    """(steps,) float64, ascending."""
    weights: np.ndarray[Any, Any]
    """(steps,) float64, positive, with sum 1."""
    residuals: np.ndarray[Any, Any]
    """(steps,) float64: an eigenvalue of A lies within ``residuals[j]`` of ``nodes[j]``."""


@final
@dataclass(frozen=True, eq=False)
class Tridiagonal(Record):
    r"""Lanczos factorizations of one operator, one for each start vector.

    Every start vector has a basis V, whose rows are the Lanczos vectors, and a tridiagonal
    matrix T. With e the last unit vector,

    .. math:: A V^T = V^T T + r e^T, \qquad \bar V V^T = I,

    and the norm of r is the residual norm.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> T = mf.lanczos(np.diag([1.0, 2.0, 3.0]), np.ones(3), 3)
    >>> T.dense().round(3)
    array([[2.   , 0.816, 0.   ],
           [0.816, 2.   , 0.577],
           [0.   , 0.577, 2.   ]])
    >>> nodes, weights = T.quadrature()
    >>> nodes.round(6), weights.round(6)
    (array([1., 2., 3.]), array([0.333333, 0.333333, 0.333333]))
    >>> bool(T.ritz().residuals.max() < 1e-12), T.node_error()
    (True, 0.0)
    """

    alphas: tuple[np.ndarray[Any, Any], ...]
    """The diagonal of T, (steps,) float64, per start vector."""
    betas: tuple[np.ndarray[Any, Any], ...]
    """The off-diagonal of T, (steps - 1,) float64 and nonnegative, per start vector."""
    residual_norms: tuple[float, ...]
    """||r|| per start vector: 0 if the Krylov space is invariant."""
    start_norms: tuple[float, ...]
    """The norms of the start vectors."""
    bases: tuple[Array, ...]
    """The Lanczos vectors, one contiguous (steps, n) array per start vector; empty if they were
    not stored."""
    num_matvecs: int
    """The number of matvecs."""
    reorthogonalize: str
    """"full", "half" or "none"."""
    node_errors: tuple[float, ...] = ()
    """Per start vector, a bound on the error of the nodes that is caused by orthogonalization
    against a basis in 16 bits; empty for other bases. With A V^T = V^T T + r e^T + F the error
    is of the order of ||F||^2 / ||A||; the bound is 4 times that."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What was chosen for a given memory budget: "basis" (as ``reorthogonalize``), "at_once"
    (number of start vectors), "predicted" and "budget" (peak memory in bytes, per process)."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local entries of the Lanczos vectors; None if they are
    whole."""

    units: ClassVar[tuple[str, ...]] = ("alphas", "betas", "residual_norms", "node_errors")
    by_row: ClassVar[dict[str, tuple[int, str]]] = {"bases": (1, "rows")}

    def dense(self, index: int = 0) -> np.ndarray[Any, Any]:
        """The matrix T of one start vector, (steps, steps) float64, dense."""
        off = self.betas[index]
        return np.diag(self.alphas[index]) + np.diag(off, 1) + np.diag(off, -1)

    def quadrature(self, index: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        r"""Gauss quadrature of the spectral measure of a start vector v.

        It is exact for polynomials p of degree up to 2 steps - 1:

        .. math:: \sum_j \tau_j \, p(\theta_j) = \frac{v^H p(A) v}{v^H v}.

        Parameters
        ----------
        index : int
            The index of the start vector.

        Returns
        -------
        nodes : (steps,) float64, ascending: the Ritz values theta_j
        weights : (steps,) float64, positive, with sum 1

        References
        ----------
        G. H. Golub, J. H. Welsch (1969), Calculation of Gauss quadrature rules,
        doi:10.1090/S0025-5718-69-99647-1.
        """
        nodes, weights, _ = self.ritz(index)
        return nodes, weights

    def ritz(self, index: int = 0) -> Quadrature:
        r"""The quadrature with the residual of each node.

        With y the eigenvector of T for the node theta,

        .. math:: \|A V^T y - \theta V^T y\| = \|r\| \, |e^T y|,

        the residual norm times the last component of y. ``node_error`` is added to it.
        """
        # Golub and Welsch: the weights are the squared first components of the eigenvectors.
        nodes, vectors = tridiagonal_eigenpairs(self.alphas[index], self.betas[index])
        residuals = self.residual_norms[index] * np.abs(vectors[-1, :]) + self.node_error(index)
        return Quadrature(nodes, vectors[0, :] ** 2, residuals)

    def node_error(self, index: int = 0) -> float:
        """A bound on the error of the nodes due to a basis in 16 bits; 0 for other bases."""
        return self.node_errors[index] if self.node_errors else 0.0

    def _rows(self) -> list[tuple[str, str]]:
        steps = ", ".join(str(len(alpha)) for alpha in self.alphas)
        return [
            ("start vectors", str(len(self.alphas))),
            ("steps", steps),
            ("residual norms", ", ".join(f"{r:.1e}" for r in self.residual_norms)),
            ("cost", f"{self.num_matvecs} matvecs"),
            *memory_rows(self.memory),
        ]
