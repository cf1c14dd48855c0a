"""Work on chunks of rows, by several threads.

The threads are Python's, which compiled code, SciPy's products and NumPy's arithmetic leave free to
run: those of numba's own layers may neither be used from two threads nor survive a fork, depending
on the layer that an installation happens to have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

_PIECES_PER_THREAD = 4  # so that a thread that is held up does not hold up the others


def over_chunks(chunks: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """``kernel(*arguments, first, last)`` over all chunks, by as many threads as there may be."""
    threads = num_threads()
    if threads == 1 or chunks == 1:
        kernel(*arguments, 0, chunks)
        return
    edges = np.linspace(0, chunks, min(chunks, threads * _PIECES_PER_THREAD) + 1).astype(int)
    pool = _pool(os.getpid(), threads)
    pieces = [
        pool.submit(kernel, *arguments, int(first), int(last)) for first, last in pairwise(edges)
    ]
    for piece in pieces:
        piece.result()


def num_threads() -> int:
    """NUMBA_NUM_THREADS or OMP_NUM_THREADS, else the processors that this process may use."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first) > 0:
            return int(first)
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available is not None else os.cpu_count() or 1


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of this process: a fork takes none of its parent's along."""
    return ThreadPoolExecutor(threads, thread_name_prefix="matfree")
