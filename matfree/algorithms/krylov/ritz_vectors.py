r"""Ritz vectors where the Lanczos basis was not kept: the recurrence is run a second time.

The first run gives T; the eigenvector y of T for theta gives the Ritz vector V^T y = sum_j y_j
v_j. Its terms are added up while the v_j come by again, so that the basis is never there: m
more products instead of m vectors. The same operations on the same numbers give the same v_j,
whichever way they were orthogonalised; so start vectors that ran together run together again.

References
----------
J. Cullum, R. A. Willoughby (1985), Lanczos algorithms for large symmetric eigenvalue
computations, doi:10.1137/1.9780898719192. The probes of this library can be made again, so that
even the start vector need not be kept.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
import scipy.linalg

from matfree.algorithms.krylov.lanczos import start_block
from matfree.algorithms.krylov.recurrence import Recurrence, Reorthogonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arguments import Which, order, require_whole
from matfree.arrays import epsilon, rounding, to_host
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, Tridiagonal
from matfree.spaces import VectorSpace

_CERTAIN_STEPS = 3  # that two runs share to rounding, whatever comes later


def ritz_vectors(
    A: Any,
    T: Tridiagonal,
    *,
    start: Array,
    k: int = 6,
    which: Which = "LM",
    rtol: float = 1e-6,
    index: int = 0,
) -> EigenResult:
    r"""Eigenpairs from a Lanczos factorization, with or without its basis.

    V^T y for the wanted eigenvectors y of T, from the basis where the result of ``lanczos``
    has one, and by a second run of the recurrence where it has none. A last projection onto
    what was found makes the vectors orthonormal and the residuals actual ones.

    Parameters
    ----------
    A : the operator that ``T`` belongs to
    T : Tridiagonal
        From ``lanczos``, with any ``reorthogonalize``.
    start : (n,) or (n, k) array
        The start vectors that ``lanczos`` was given.
    k : int
        Pairs at most. There are fewer where T has fewer different eigenvalues.
    which : {"LM", "LA", "SA", "BE"}
        As for ``eigsh``.
    rtol : float
        The residual, relative to ||A|| as T knows it, up to which a pair counts as
        converged. Nothing is warned of: T is what it is.
    index : int
        The start vector whose factorization is meant.

    Returns
    -------
    EigenResult
        Never ``verified``: one start vector sees one copy of a repeated eigenvalue. Nothing is
        drawn here, so ``seed`` is 0.

    Raises
    ------
    ValueError
        T has no such start vector, or does not belong to this operator and start vector.

    Cost
    ----
    k matvecs, and as many as T has steps where there is no basis. Memory: 5 k + 9 vectors, and
    the basis in 16 bits where T was made with one.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[np.linspace(0.0, 1.0, 97), 3.0, 5.0, 9.0])
    >>> T = mf.lanczos(A, np.ones(100), 60, reorthogonalize="none", keep_basis=False)
    >>> int((T.quadrature()[0] > 2).sum()) > 3  # eigenvalues come several times
    True
    >>> mf.ritz_vectors(A, T, start=np.ones(100), k=3).values.round(9)
    array([9., 5., 3.])
    """
    require_whole("k", k)
    if not 0 <= index < len(T.alphas):
        raise ValueError(f"index must be in [0, {len(T.alphas)}), one a start vector: got {index}.")
    A = CountedOperator(A)
    V = start_block(A.space, start)
    if V.shape[1] != len(T.alphas):
        raise ValueError(f"start must have {len(T.alphas)} vectors, like T: got {V.shape[1]}.")
    values, Y = scipy.linalg.eigh_tridiagonal(T.alphas[index], T.betas[index])
    apart = _distinct(T, index, values, Y, order(values, which, len(values)), k, A.space)
    X = _basis_times(A, T, index, V, Y[:, apart])
    return _rayleigh_ritz_pairs(A, X, which, rtol, T)


def _distinct(
    T: Tridiagonal,
    index: int,
    values: HostArray,
    Y: HostArray,
    ordered: HostArray,
    k: int,
    space: VectorSpace,
) -> list[int]:
    """The first k that are no copies of one already there: those come without a basis."""
    residuals = T.residual_norms[index] * np.abs(Y[-1, :]) + T.node_error(index)
    floor = rounding(space.xp, space.dtype) * float(np.abs(values).max(initial=0.0))
    found: list[int] = []
    for j in ordered.tolist():
        near = residuals[found] + residuals[j] + floor
        if T.reorthogonalize != "none" or np.all(np.abs(values[found] - values[j]) > near):
            found.append(j)
    return found[:k]


def _basis_times(
    A: CountedOperator, T: Tridiagonal, index: int, start: Array, Y: HostArray
) -> Array:
    """V^T Y, from the basis or by the same run again."""
    space, steps = A.space, len(T.alphas[index])
    if T.bases:
        basis = space.xp.asarray(T.bases[index], dtype=space.dtype, device=space.device)
        return basis.T @ space.asarray(Y)
    at_once = T.memory.get("at_once", len(T.alphas))
    group = slice(index - index % at_once, min(index - index % at_once + at_once, len(T.alphas)))
    combination = _RunningCombination(space, index - group.start, Y)
    run = Recurrence(
        A,
        start[:, group],
        max(len(alpha) for alpha in T.alphas[group]),
        reorthogonalize=_reorthogonalization(T),
        keep_basis=False,
        listener=combination,
    )
    while not run.finished:
        run.advance()
    again, scale = run.result().alphas[index - group.start], np.abs(T.alphas[index]).max()
    few = min(steps, len(again), _CERTAIN_STEPS)
    slack = epsilon(space.xp, space.dtype) ** 0.5 * scale
    if np.abs(again[:few] - T.alphas[index][:few]).max() > slack:
        raise ValueError(
            "T does not belong to this operator and start vector: its first entries are "
            f"{T.alphas[index][:few].round(6).tolist()}, and the recurrence gives "
            f"{again[:few].round(6).tolist()}; pass what lanczos was given."
        )
    return combination.X


def _reorthogonalization(T: Tridiagonal) -> Reorthogonalize:
    kinds: dict[str, Reorthogonalize] = {"full": "full", "half": "half", "none": "none"}
    return kinds[T.reorthogonalize]


@final
class _RunningCombination:
    """sum_j v_j Y[j, :] for one of the start vectors, while the v_j come by."""

    def __init__(self, space: VectorSpace, column: int, Y: HostArray) -> None:
        self.space, self.column, self.Y = space, column, Y
        self.X = space.zeros(Y.shape[1])

    def append(self, V: Array, step: int) -> None:
        """Add the term of a step, a slab of rows at a time."""
        if step >= self.Y.shape[0]:
            return
        y = self.space.asarray(self.Y[step : step + 1, :])
        v = V[:, self.column : self.column + 1]
        for rows in self.space.slabs(self.Y.shape[1]):
            self.X[rows, :] += v[rows, :] @ y


def _rayleigh_ritz_pairs(
    A: CountedOperator, X: Array, which: Which, rtol: float, T: Tridiagonal
) -> EigenResult:
    """Rayleigh and Ritz on the range of X, with the residuals of actual products."""
    space = A.space
    norms = to_host(space.norms(X))
    Q = space.orthonormalize(X / space.asarray(np.where(norms > 0, norms, 1.0))[None, :])
    W = A(Q)
    H = to_host(space.gram(Q, W))
    A.require_finite(H)
    values, S = np.linalg.eigh((H + H.conj().T) / 2)
    best = order(values, which, len(values))
    values, S = values[best], S[:, best]
    nodes = [abs(node) for p in range(len(T.alphas)) for node in T.quadrature(p)[0][[0, -1]]]
    U, norm = Q @ space.asarray(S), float(max(nodes))
    R = W @ space.asarray(S) - U * space.asarray(values)[None, :]
    residuals = to_host(space.norms(R)) / norm if norm > 0 else np.zeros(len(values))
    return EigenResult(
        values=values,
        vectors=U,
        residuals=residuals,
        converged=residuals <= rtol,
        norm=norm,
        which=which,
        method="Lanczos" if T.bases else "Lanczos, run twice",
        num_matvecs=A.num_matvecs,
        num_steps=max(len(alpha) for alpha in T.alphas),
        reason="the pairs of T that were asked for",
        seed=0,
        rows=space.row_range,
    )
