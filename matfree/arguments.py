"""Arguments that many public functions share: their types, checks and defaults.

This module is public, so that adapters treat the same arguments in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from matfree.protocol import HostArray

SMALL_ENTRIES = 1 << 18
"""Entries of a block whose memory is negligible.

Up to this size blocks are wider, because a dense matrix is read once for all of their columns,
and probes may be stored instead of drawn again.
"""

_MAX_BLOCK_ENTRIES = 1 << 25  # 256 MiB in double precision

Which: TypeAlias = Literal["LM", "LA", "SA", "BE"]
"""Which eigenvalues: the largest in magnitude, the largest, the smallest, or both ends."""


def require_whole(name: str, count: Any) -> None:
    """Raise ValueError unless ``count`` is None or a positive integer of 63 bits."""
    whole = hasattr(count, "__index__") and not isinstance(count, bool)
    if count is not None and (not whole or not 1 <= count < 2**63):
        limit = "below 2**63" if whole and count >= 1 else "at least 1"
        raise ValueError(f"{name} must be a whole number, {limit}: got {count!r}.")


def require_tolerance(name: str, tolerance: Any) -> None:
    """Raise ValueError unless ``tolerance`` is None or a finite number that is not negative."""
    if tolerance is None:
        return
    if not isinstance(tolerance, int | float | np.number) or not 0 <= tolerance < math.inf:
        raise ValueError(f"{name} must be finite and not negative: got {tolerance!r}.")


def block_size_for(size: int, block_size: int | None, total: int | None = None) -> int:
    """The number of vectors per block: ``block_size``, or what fits in moderate memory.

    Parameters
    ----------
    size : int
        The length of a vector.
    block_size : int, optional
        The user's choice, which is returned unchanged.
    total : int, optional
        The number of vectors altogether, if it is known.

    Returns
    -------
    int
        Blocks of a known ``total`` have nearly equal widths, in multiples of 4, because a
        narrow last block costs almost as much as a wide one.
    """
    require_whole("block_size", block_size)
    if block_size is not None:
        return block_size
    widest = min(64, max(32, SMALL_ENTRIES // size))
    most = max(1, min(widest, _MAX_BLOCK_ENTRIES // size))
    if total is None or total <= most:
        return most
    share = math.ceil(total / math.ceil(total / most))
    return min(most, 4 * math.ceil(share / 4))


def slices(size: int, block_size: int, start: int = 0) -> Iterator[slice]:
    """Consecutive slices of at most ``block_size`` from ``start`` to ``size``."""
    for begin in range(start, size, block_size):
        yield slice(begin, min(begin + block_size, size))


def spectral_values(f: Callable[[HostArray], Any], nodes: HostArray) -> HostArray:
    """The values f(x) at all nodes, (nodes,) float64 or complex128.

    Raises
    ------
    ValueError
        f does not map the array of nodes to an array of the same shape, or a value is not finite.
    """
    values = elementwise_values(f, nodes)
    if not np.all(np.isfinite(values)):
        bad = float(nodes[~np.isfinite(values)][0])
        raise ValueError(
            f"f is not finite at the Ritz value {bad:.6g} (the least is {nodes.min():.6g}); shift "
            "the operator, or choose an f that is finite on its spectrum."
        )
    return values


def elementwise_values(f: Callable[[HostArray], Any], points: HostArray) -> HostArray:
    """As ``spectral_values``, for points at which f need not be finite."""
    try:
        with np.errstate(all="ignore"):  # NumPy's warnings would be less precise than the errors
            result = f(points.copy())  # f may overwrite its argument
    except (TypeError, ValueError) as cause:
        error = TypeError if isinstance(cause, TypeError) else ValueError
        reason = f"raised {type(cause).__name__} ({cause})"
        raise error(_not_elementwise(f, points, reason)) from cause
    if isinstance(result, np.ma.MaskedArray):  # a masked value is not defined
        result = np.where(np.ma.getmaskarray(result), np.nan, result.data)
    values = np.asarray(result)
    if values.shape != points.shape:
        what = (
            f"an array of shape {values.shape}" if values.ndim else f"one {type(result).__name__}"
        )
        raise ValueError(_not_elementwise(f, points, f"returned {what}"))
    if not np.issubdtype(values.dtype, np.number) and values.dtype != np.bool_:
        reason = f"returned an array of dtype {values.dtype}"
        raise ValueError(_not_elementwise(f, points, reason))
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _not_elementwise(f: Callable[[HostArray], Any], points: HostArray, reason: str) -> str:
    name = getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or repr(f)
    return (
        f"f ({name}) must map an array of Ritz values to an array of the same shape: for shape "
        f"{points.shape} it {reason}; numpy.vectorize(f) applies a function of one number to "
        "arrays."
    )


def order(values: HostArray, which: Which, k: int) -> HostArray:
    """The indices of the k eigenvalues that ``which`` asks for, the most wanted first.

    For "BE" the indices alternate between the two ends, beginning with the largest eigenvalue.
    """
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")[:k]
    ascending = np.argsort(values, kind="stable")
    if which == "SA":
        return ascending[:k]
    descending = ascending[::-1]
    if which == "LA":
        return descending[:k]
    k = min(k, len(values))  # or the two ends would overlap
    high, low = descending[: (k + 1) // 2], ascending[: k // 2]
    both = np.empty(len(high) + len(low), dtype=int)
    both[0::2], both[1::2] = high, low
    return both
