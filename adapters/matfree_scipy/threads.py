"""Loops over chunks of rows in several threads.

The threads are Python's: compiled loops, SciPy's products and NumPy's arithmetic release the GIL.
numba's own threading layers are not used, because depending on the installed layer they are not
safe to use from two threads, or do not survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

_TASKS_PER_THREAD = 4  # so that the others can take over the work of a delayed thread


def over_chunks(chunks: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """Run ``kernel(*arguments, first, last)`` over all chunks, in ``num_threads()`` threads."""
    threads = num_threads()
    if threads == 1 or chunks == 1:
        kernel(*arguments, 0, chunks)
        return
    edges = np.linspace(0, chunks, min(chunks, threads * _TASKS_PER_THREAD) + 1).astype(int)
    pool = _pool(os.getpid(), threads)
    tasks = [
        pool.submit(kernel, *arguments, int(first), int(last)) for first, last in pairwise(edges)
    ]
    for task in tasks:
        task.result()


def num_threads() -> int:
    """NUMBA_NUM_THREADS or OMP_NUM_THREADS, or else the number of usable processors."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first) > 0:
            return int(first)
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available is not None else os.cpu_count() or 1


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of this process; after a fork, the child needs threads of its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="matfree")
