r"""Orthonormal bases, computed only from Gram matrices: the algorithm behind ``orthonormalize``.

With the eigendecomposition of the Gram matrix,

.. math:: X^H X = V \Lambda V^H, \qquad Q = X V \Lambda^{-1/2}

has orthonormal columns. The Gram matrix squares the condition number of X, so one sweep keeps only
the directions that it resolves, orthonormalizes them a second time to remove the rounding error
of the first, and subtracts them from X. Further sweeps treat the remainder. Only sums over rows
are needed, which works for vectors of any library and for sharded vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from matfree.arrays import epsilon, rounding, slabs, to_host
from matfree.protocol import Array
from matfree.reductions import Reductions

_MAX_SWEEPS = 8  # a sweep gains half of the digits, so that two or three suffice

# Ratios of the smallest to the largest eigenvalue of a Gram matrix.
_FAR_FROM_DEPENDENT = 1e-2  # orthogonality to other bases loses at most one digit
_NEARLY_ORTHOGONAL = 0.25  # orthonormality loses at most two bits


def orthonormal_range(
    space: Reductions,
    X: Array,
    *,
    against: Array | None,
    floor: float,
    removed: np.ndarray[Any, Any] | None = None,
) -> Array:
    """An orthonormal basis of the range of X; see :meth:`matfree.VectorSpace.orthonormalize`.

    Parameters
    ----------
    space, X, against, floor
        As for :meth:`matfree.VectorSpace.orthonormalize`.
    removed : (k,), optional
        The norms of the components that were removed from the columns of X, if ``against`` has
        already been projected out of X once. The projection is then repeated only if a column
        lost more than half of its norm.
    """
    bases = [] if against is None or not against.shape[1] else [against]
    num_given = len(bases)
    lengths = to_host(space.norms(X))
    floor = max(floor, rounding(space.xp, space.dtype) * lengths.max(initial=0))
    ours = bool(bases) and (removed is None or not _enough(np.hypot(lengths, removed), lengths))
    if ours:  # a copy that may be overwritten
        X = space.xp.asarray(X, copy=True)
        lengths = _remainder(space, bases, X, lengths)
    missing = X.shape[1]
    for _ in range(_MAX_SWEEPS):
        longest = lengths.max(initial=0)
        if not longest > floor:
            break
        bases.append(_well_conditioned(space, bases, X / float(longest), floor / longest))
        missing -= bases[-1].shape[1]
        if missing == 0:  # the remainder of X consists of rounding errors
            break
        if not ours:
            X, ours = space.xp.asarray(X, copy=True), True
        lengths = _remainder(space, bases, X, lengths)
    found = bases[num_given:]
    if len(found) == 1:
        return found[0]
    return space.xp.concat(found, axis=1) if found else X[:, :0]


def project_out(space: Reductions, X: Array, Q: Array) -> Array:
    """X -= Q (Q^H X) in place. Returns the components Q^H X, (j, k) in double precision."""
    components = space.gram(Q, X)
    subtract(space, X, Q, components)
    return components


def subtract(space: Reductions, X: Array, Q: Array, components: Array) -> None:
    """X -= Q components, in place.

    The rows are processed in slabs that stay in the cache, because the libraries' product of a
    tall block and a small matrix is up to three times slower than the products of the slabs.
    """
    xp = space.xp
    factors = xp.astype(components, space.dtype)
    width = (Q.shape[1] + X.shape[1]) * xp.finfo(space.dtype).bits // 16
    for rows in slabs(X.shape[0], width, space.device):
        part = X[rows, :]
        part -= Q[rows, :] @ factors


def _remainder(
    space: Reductions, bases: list[Array], X: Array, lengths: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Project the bases out of X, in place. Returns the norms of the columns after that.

    Parameters
    ----------
    lengths : (k,)
        The norms of the columns before.
    """
    for _ in range(2):
        _project_out(space, bases, X)
        before, lengths = lengths, to_host(space.norms(X))
        if _enough(before, lengths):
            break
    return lengths


def _enough(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> bool:
    """Whether one projection was sufficient for columns with these norms before and after it.

    The rounding error of a projection is relative to the norm before it. If the remainder is
    much shorter, it is not orthogonal to working precision and has to be projected again
    (J. Daniel, W. Gragg, L. Kaufman, G. Stewart, 1976,
    doi:10.1090/S0025-5718-1976-0431641-8).
    """
    return bool(np.all(2 * after >= before))


def _well_conditioned(space: Reductions, bases: list[Array], X: Array, floor: float) -> Array:
    """An orthonormal basis of the directions of X that one Gram matrix resolves.

    X is orthogonal to the bases up to rounding errors. If the columns of X are nearly linearly
    dependent, the division by small singular values amplifies these errors, and the bases are
    projected out again. The longest column of X has norm 1.
    """
    if X.shape[1] == 1:
        return X
    X, ratio = _whitened(space, X, floor)
    if ratio > _NEARLY_ORTHOGONAL:
        return X
    if ratio < _FAR_FROM_DEPENDENT:
        _project_out(space, bases, X)
    return _whitened(space, X, floor)[0]


def _whitened(space: Reductions, X: Array, floor: float) -> tuple[Array, float]:
    """Q = X V Lambda^(-1/2), and the smallest retained eigenvalue relative to the largest."""
    # The first pass leaves Q^H Q - I of size eps / spread. The second pass, whose Gram matrix is
    # nearly the identity, reduces it to eps.
    spread = epsilon(space.xp, space.dtype) ** (2 / 3)
    values, vectors = np.linalg.eigh(to_host(space.gram(X, X)))
    keep = values > max(spread * values[-1], floor**2)
    X = X @ space.asarray(vectors[:, keep] / np.sqrt(values[keep]))
    return X, float(values[keep].min(initial=np.inf) / values[-1])


def _project_out(space: Reductions, bases: list[Array], X: Array) -> None:
    """Project orthonormal bases that are orthogonal to each other out of X, in place."""
    for Q in bases:
        project_out(space, X, Q)
