"""Right-hand sides and start vectors: their conversion, and their scaling by powers of two."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import is_array_api_obj

from matfree.algorithms.running.counted_operator import converted_block
from matfree.arrays import describe, to_host
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace


class RightHandSides(NamedTuple):
    """A block of vectors whose norms are near 1, and the factors that restore the given ones."""

    block: Array
    """(rows, k)."""
    scales: HostArray
    """(k,) float64, powers of 2."""
    norms: HostArray
    """(k,) float64: the norms of the columns of ``block``."""
    is_vector: bool
    """Whether a single vector was given."""

    @classmethod
    def of(cls, space: VectorSpace, B: Any) -> RightHandSides:
        """Convert right-hand sides to vectors of a space.

        Raises
        ------
        ValueError
            B does not have shape (rows,) or (rows, k), is complex although the space is real, or
            contains NaN or infinity.
        """
        B, is_vector = as_block(space, B, "B")
        largest = largest_entries(space, B)
        if not np.all(np.isfinite(largest)):
            bad = int(np.flatnonzero(~np.isfinite(largest))[0])
            raise ValueError(f"B must be finite: column {bad} contains NaN or infinity.")
        limit = 1000 if space.xp.finfo(space.dtype).smallest_normal < 1e-200 else 120
        with np.errstate(divide="ignore"):
            exponents = np.where(largest > 0, np.round(np.log2(largest)), 0.0)
        scales = 2.0 ** np.clip(exponents, -limit, limit)
        block = B * space.asarray(1 / scales)[None, :]
        return cls(block, scales, to_host(space.norms(block)), is_vector)


def as_block(space: VectorSpace, X: Any, name: str) -> tuple[Array, bool]:
    """A vector (rows,) or a block (rows, k) as a block, and whether it was a vector.

    Raises
    ------
    ValueError
        It has another shape, or is complex although the space is real.
    """
    given = X
    if not is_array_api_obj(X) or isinstance(X, np.matrix):
        X = np.asarray(X)
    if isinstance(X, np.ndarray) and X.dtype.kind not in "biufc":
        raise ValueError(f"{name} must be an array of numbers: got {describe(given)}.")
    rows, shape = len(space.rows), tuple(X.shape)
    if len(shape) not in (1, 2) or shape[0] != rows or 0 in shape[1:]:
        raise ValueError(
            f"{name} must have shape ({rows},) or ({rows}, k) with k > 0, for an operator whose "
            f"vectors have {space.size} entries: got {describe(X)}."
        )
    is_vector = len(shape) == 1
    return converted_block(space, X[:, None] if is_vector else X, name), is_vector


def largest_entries(space: VectorSpace, B: Array) -> HostArray:
    """The largest absolute entry of every column, over all processes, (k,) float64."""
    local = np.zeros(B.shape[1])
    if B.shape[0]:
        local = to_host(space.xp.max(space.xp.abs(B), axis=0)).astype(np.float64)
    return np.asarray(np.max(space.all_gather_object(lambda: local), axis=0))
