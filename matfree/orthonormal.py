"""An orthonormal basis of a block's range by sweeps of Gram matrices: ``orthonormalize``."""

from __future__ import annotations

from typing import Any

import numpy as np

from matfree.arrays import epsilon, rounding, slabs, to_host
from matfree.protocol import Array
from matfree.reductions import Reductions

_MAX_SWEEPS = 8  # each gains half of the digits, two or three are used
_FAR_FROM_DEPENDENT = 1e-2  # eigenvalues of a Gram matrix: one digit of rounding is lost
_NEARLY_ORTHOGONAL = 0.25  # two bits of it


def orthonormal_range(
    space: Reductions,
    X: Array,
    *,
    against: Array | None,
    floor: float,
    removed: np.ndarray[Any, Any] | None = None,
) -> Array:
    """:meth:`matfree.spaces.Reductions.orthonormalize`, by the reductions of the space alone.

    Where ``against`` has been taken off X once, ``removed`` says how long that was for each
    column: it is done again only where they lost half of their length.
    """
    bases = [] if against is None or not against.shape[1] else [against]
    num_taken = len(bases)
    lengths = to_host(space.norms(X))
    floor = max(floor, rounding(space.xp, space.dtype) * lengths.max(initial=0))
    ours = bool(bases) and (removed is None or not _enough(np.hypot(lengths, removed), lengths))
    if ours:  # to write on
        X = space.xp.asarray(X, copy=True)
        lengths = _remainder(space, bases, X, lengths)
    missing = X.shape[1]
    for _ in range(_MAX_SWEEPS):
        longest = lengths.max(initial=0)
        if not longest > floor:
            break
        bases.append(_well_conditioned(space, bases, X / float(longest), floor / longest))
        missing -= bases[-1].shape[1]
        if missing == 0:  # what is left of X is rounding
            break
        if not ours:
            X, ours = space.xp.asarray(X, copy=True), True
        lengths = _remainder(space, bases, X, lengths)
    found = bases[num_taken:]
    if len(found) == 1:
        return found[0]
    return space.xp.concat(found, axis=1) if found else X[:, :0]


def project_out(space: Reductions, X: Array, Q: Array) -> Array:
    """X -= Q (Q^H X), in place; the components Q^H X, (j, k) in double."""
    components = space.gram(Q, X)
    subtract(space, X, Q, components)
    return components


def subtract(space: Reductions, X: Array, Q: Array, components: Array) -> None:
    """X -= Q components, in place.

    In slabs: a library's product of a tall block with a small matrix is up to three times
    slower than that of its parts, which stay in the cache.
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
    """Take the components along the bases off X, whose columns' lengths are given; the new."""
    for _ in range(2):
        _project_out(space, bases, X)
        before, lengths = lengths, to_host(space.norms(X))
        if _enough(before, lengths):
            break
    return lengths


def _enough(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> bool:
    """Whether columns that had and have these lengths are orthogonal to what was taken off.

    Once is not enough where what is left is much shorter than what was there: rounding is
    relative to the latter (J. Daniel, W. Gragg, L. Kaufman, G. Stewart, 1976,
    doi:10.1090/S0025-5718-1976-0431641-8).
    """
    return bool(np.all(2 * after >= before))


def _well_conditioned(space: Reductions, bases: list[Array], X: Array, floor: float) -> Array:
    """Orthonormal directions of X that one Gram matrix resolves.

    X is orthogonal to the bases to rounding, which grows where its columns are nearly
    dependent: what it grew to is taken off again. The longest column of X has length 1.
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
    """X with its Gram matrix made I, and the least eigenvalue kept over the largest."""
    spread = epsilon(space.xp, space.dtype) ** (2 / 3)  # done again, it mends eps / spread
    values, vectors = np.linalg.eigh(to_host(space.gram(X, X)))
    keep = values > max(spread * values[-1], floor**2)
    X = X @ space.asarray(vectors[:, keep] / np.sqrt(values[keep]))
    return X, float(values[keep].min(initial=np.inf) / values[-1])


def _project_out(space: Reductions, bases: list[Array], X: Array) -> None:
    """X -= its components along orthonormal bases that are orthogonal to each other."""
    for Q in bases:
        project_out(space, X, Q)
