"""Random signs compiled by numba: the bits of ``matfree.probes`` in one pass over memory.

The version for all array libraries writes and reads several intermediate arrays of random words
and bytes for each block of signs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from matfree import probes as array_version
from matfree.protocol import Array, DType
from matfree_scipy.compilation import compiled
from matfree_scipy.threads import over_chunks

MIN_SIGNS = 1 << 16
"""Signs from which the threads save more time than starting them takes."""

_COUNTER_ROWS = 128  # one counter of Philox yields the signs of this many rows


def use_compiled_signs() -> None:
    """From now on, compute large blocks of NumPy signs by the compiled kernel."""
    array_version.replace_signs("numpy", rademacher_by_numba)


def rademacher_by_numba(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Random signs, (rows, probes) in C order, bit for bit those of ``matfree.probes``."""
    if len(rows) * len(probes) < MIN_SIGNS:
        return array_version.signs_by_words(
            xp, dtype, device, rows=rows, probes=probes, stream=stream, seed=seed
        )
    array_version.require_numbers(probes)
    out = xp.empty((len(rows), len(probes)), dtype=dtype)
    first, skipped = divmod(rows.start, _COUNTER_ROWS)
    chunks = -(-rows.stop // _COUNTER_ROWS) - first
    numbers = map(np.uint64, (first, skipped, probes.start, stream, seed))
    over_chunks(chunks, compiled(fill_signs), *numbers, out)
    return out


def fill_signs(
    first_block: Any, skipped: Any, first_probe: Any, stream: Any, seed: Any, out: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """The signs of some counters; each yields those of 128 rows of one probe.

    All integers are unsigned with 64 bits, because numba converts a mixture with signed integers
    to floating point. The rounds are those of ``matfree.probes.philox``.
    """
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    height, k = out.shape
    words = np.empty((4, k), dtype=np.int32)
    for chunk in range(first, last):
        block = first_block + np.uint64(chunk)
        for p in range(k):
            c0, c1 = block & mask, block >> half
            c2, c3 = first_probe + np.uint64(p), stream
            k0, k1 = seed & mask, seed >> half
            for _ in range(10):
                a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
                c0, c1, c2, c3 = (b >> half) ^ c1 ^ k0, b & mask, (a >> half) ^ c3 ^ k1, a & mask
                k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
            words[0, p], words[1, p] = np.int32(c0), np.int32(c1)
            words[2, p], words[3, p] = np.int32(c2), np.int32(c3)
        for bit in range(128):
            i = chunk * 128 + bit - np.int64(skipped)
            if 0 <= i < height:
                row, lane, place = out[i], words[bit >> 5], np.int32(bit & 31)
                for p in range(k):
                    row[p] = np.int32(1) - np.int32(2) * ((lane[p] >> place) & np.int32(1))
