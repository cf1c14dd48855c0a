"""Singular value decompositions of a block of vectors, accurate also if its lengths differ.

LAPACK neglects off-diagonal entries up to 90 eps sigma_1 (``tolmul`` of ``dbdsqr``). One sweep of
one-sided Jacobi rotations, which make the columns of C Y orthogonal relative to their lengths,
removes them.

References
----------
J. Demmel, K. Veselic (1992), Jacobi's method is more accurate than QR,
doi:10.1137/0613074.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import rounding, to_host
from matfree.protocol import Array, HostArray


def block_svd(A: CountedOperator, AV: Array) -> tuple[Array, HostArray, Array]:
    """U, S and Y with A V Y = [U diag(S), 0] up to rounding errors.

    Parameters
    ----------
    A : CountedOperator
    AV : (rows, k)
        Its matvecs with k orthonormal vectors.

    Returns
    -------
    U : (rows, r), orthonormal columns, without the directions that are only rounding errors
    S : (r,) float64, descending
    Y : (k, k), unitary, in the operator's library

    Raises
    ------
    NonFiniteError
        A V contains NaN or infinity.
    """
    space = A.operator.space
    lengths = to_host(space.norms(AV))
    A.require_finite(lengths)
    # Nearly orthogonal columns of equal length lose no digits in a Gram matrix. Columns of
    # rounding errors are divided by the largest length, so that they remain negligible.
    longest = lengths.max() or 1.0
    scales = np.where(lengths > rounding(space.xp, space.dtype) * longest, lengths, longest)
    Q = space.orthonormalize(AV / space.asarray(scales)[None, :])
    X, values, Y = small_svd(to_host(space.gram(Q, AV)))
    return Q @ space.asarray(X), values, space.asarray(Y)


def small_svd(C: HostArray) -> tuple[HostArray, HostArray, HostArray]:
    """X, S and Y with C Y = X diag(S).

    Parameters
    ----------
    C : (r, k) with r <= k

    Returns
    -------
    X : (r, r), unitary
    S : (r,) float64, descending
    Y : (k, k), unitary
    """
    r, k = C.shape
    Y = np.linalg.svd(C)[2].conj().T
    B = C @ Y
    for i, j in combinations(range(r), 2):
        _rotate(B, Y, i, j)
    X, R = np.linalg.qr(B[:, :r])
    values = np.diag(R).real
    signs = np.where(values < 0, -1.0, 1.0)
    best = np.argsort(-np.abs(values), kind="stable")
    columns = np.concatenate((best, np.arange(r, k)))
    return (X * signs)[:, best], np.abs(values)[best], Y[:, columns]


def _rotate(B: HostArray, Y: HostArray, i: int, j: int) -> None:
    """Rotate columns i and j of B and Y, in place, so that those of B become orthogonal."""
    first, second = np.linalg.norm(B[:, i]), np.linalg.norm(B[:, j])
    inner = np.vdot(B[:, i], B[:, j])
    size = float(np.abs(inner))
    if size <= np.finfo(np.float64).eps * first * second:
        return
    zeta = (second - first) * (second + first) / (2 * size)
    tangent = (1.0 if zeta >= 0 else -1.0) / (abs(zeta) + float(np.hypot(1.0, zeta)))
    cosine = 1 / float(np.hypot(1.0, tangent))
    phase = inner / size
    rotation = cosine * np.array([[1.0, tangent * phase], [-tangent * np.conj(phase), 1.0]])
    for M in (B, Y):
        M[:, [i, j]] = M[:, [i, j]] @ rotation
