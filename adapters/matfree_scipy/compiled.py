"""Compiling by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache


@cache
def compiled(kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel compiled, free of the interpreter's lock; kept on disk where that works."""
    import numba

    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(kernel)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder that numba may write to
        return numba.njit(**options)(kernel)  # type: ignore[no-any-return]
