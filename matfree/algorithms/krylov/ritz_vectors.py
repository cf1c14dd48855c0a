r"""``ritz_vectors``: Ritz vectors with or without a stored Lanczos basis.

A first run of the recurrence yields T. An eigenvector y of T for the eigenvalue theta defines the
Ritz vector

.. math:: V^T y = \sum_j y_j v_j.

Without a stored basis, the terms are accumulated while a second run computes the v_j again: the
cost is m matvecs instead of memory for m vectors. The same operations on the same numbers
yield the same v_j, whatever the reorthogonalization. Therefore start vectors that ran at the
same time run at the same time again.

References
----------
J. Cullum, R. A. Willoughby (1985), Lanczos algorithms for large symmetric eigenvalue
computations, doi:10.1137/1.9780898719192. Here, probes can be generated again from their seed, so
that not even the start vector has to be stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from matfree.algorithms.krylov.combinations import RunningCombination
from matfree.algorithms.krylov.lanczos import start_block
from matfree.algorithms.krylov.rayleigh_ritz import rayleigh_ritz
from matfree.algorithms.krylov.recurrence import Recurrence, Reorthogonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.magnitude import equivariant
from matfree.arguments import Which, order, require_whole
from matfree.arrays import epsilon, rounding, to_host
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, Tridiagonal
from matfree.results.tridiagonal import tridiagonal_eigenpairs
from matfree.spaces import VectorSpace

_CERTAIN_STEPS = 3  # steps in which two runs agree up to rounding errors


@equivariant("T")
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

    For the wanted eigenvectors y of T, the Ritz vectors

    .. math:: V^T y = \sum_j y_j v_j

    are computed from the basis if the result of ``lanczos`` contains it, and otherwise by a
    second run of the recurrence. A final Rayleigh-Ritz step makes them orthonormal and computes
    their residuals from matvecs.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
        (n, n), the operator that ``T`` was computed with.
    T : Tridiagonal
        The result of :func:`matfree.lanczos`, with any ``reorthogonalize``.
    start : (n,) or (n, k) array
        The start vectors that ``lanczos`` was given.
    k : int
        The maximum number of eigenpairs. There are fewer if T has fewer distinct eigenvalues.
    which : {"LM", "LA", "SA", "BE"}
        As for :func:`matfree.eigsh`.
    rtol : float
        The bound on the residuals of converged eigenpairs, relative to ||A||, which is estimated
        by the largest absolute eigenvalue of T. No warning is issued for eigenpairs that did not
        converge, because T is given.
    index : int
        The index of the start vector whose factorization is used.

    Returns
    -------
    EigenResult
        ``values`` (k,) float64, ``vectors`` (n, k) in the operator's library, data type and
        device, and ``residuals`` (k,) relative to ||A||. ``verified`` is always False, because
        the Krylov space of one start vector contains one copy of a repeated eigenvalue. ``seed``
        is 0, because nothing is random.

    Raises
    ------
    ValueError
        T has no such start vector, or it does not belong to this operator and start vector, or
        another argument is out of range.
    NotHermitianError
        The matvecs of the second run contradict A = A^H.
    NonFiniteError
        A matvec contains NaN or infinity.

    Cost
    ----
    k matvecs, and without a basis one more for every step of every start vector that runs at
    the same time. Memory: 5 k + 9 vectors, and the basis in 16 bits if T was computed with one.

    References
    ----------
    J. Cullum, R. A. Willoughby (1985), Lanczos algorithms for large symmetric eigenvalue
    computations, doi:10.1137/1.9780898719192.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[np.linspace(0.0, 1.0, 97), 3.0, 5.0, 9.0])
    >>> T = mf.lanczos(A, np.ones(100), 60, reorthogonalize="none", keep_basis=False)
    >>> int((T.quadrature()[0] > 2).sum()) > 3  # there are copies of eigenvalues
    True
    >>> mf.ritz_vectors(A, T, start=np.ones(100), k=3).values.round(9)
    array([9., 5., 3.])
    """
    require_whole("k", k)
    if not 0 <= index < len(T.alphas):
        raise ValueError(
            f"index must be in [0, {len(T.alphas)}): got {index}; pass the index of a start "
            "vector of T."
        )
    A = CountedOperator(A)
    V = start_block(A.space, start)
    if V.shape[1] != len(T.alphas):
        raise ValueError(
            f"start must have {len(T.alphas)} vectors, like T: got {V.shape[1]}; pass what lanczos "
            "was given."
        )
    values, Y = tridiagonal_eigenpairs(T.alphas[index], T.betas[index])
    distinct = _distinct(T, index, values, Y, order(values, which, len(values)), k, A.space)
    X = _basis_times(A, T, index, V, Y[:, distinct])
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
    """The indices of the first k distinct eigenvalues of T, in the given order.

    Without reorthogonalization, T has several copies of a converged eigenvalue. Two eigenvalues
    are copies if they agree up to their residuals.
    """
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
    """V^T Y, (rows, columns of Y), from the basis or from a second run."""
    space, steps = A.space, len(T.alphas[index])
    if T.bases:
        basis = space.xp.asarray(T.bases[index], dtype=space.dtype, device=space.device)
        return basis.T @ space.asarray(Y)
    at_once = T.memory.get("at_once", len(T.alphas))
    group = slice(index - index % at_once, min(index - index % at_once + at_once, len(T.alphas)))
    combination = RunningCombination(space, index - group.start, Y)
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
            f"{T.alphas[index][:few].round(6).tolist()}, but the recurrence yields "
            f"{again[:few].round(6).tolist()}; pass what lanczos was given."
        )
    return combination.X


def _reorthogonalization(T: Tridiagonal) -> Reorthogonalize:
    kinds: dict[str, Reorthogonalize] = {"full": "full", "half": "half", "none": "none"}
    return kinds[T.reorthogonalize]


def _rayleigh_ritz_pairs(
    A: CountedOperator, X: Array, which: Which, rtol: float, T: Tridiagonal
) -> EigenResult:
    """Rayleigh-Ritz on the range of X, with the residuals of actual matvecs."""
    space = A.space
    norms = to_host(space.norms(X))
    Q = space.orthonormalize(X / space.asarray(np.where(norms > 0, norms, 1.0))[None, :])
    values, residuals, U = rayleigh_ritz(A, Q, A(Q), which)
    nodes = [abs(node) for p in range(len(T.alphas)) for node in T.quadrature(p)[0][[0, -1]]]
    norm = float(max(nodes))
    residuals = residuals / norm if norm > 0 else np.zeros(len(values))
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
        reason="the requested eigenpairs of T were computed",
        seed=0,
        rows=space.row_range,
    )
