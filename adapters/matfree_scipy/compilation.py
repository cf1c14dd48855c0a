"""Compilation of loops by numba."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any


@cache
def compiled(kernel: Any, *helpers: Callable[..., None]) -> Callable[..., None]:
    """The compiled kernel, which releases the GIL; it is cached on disk if possible.

    Parameters
    ----------
    kernel : function
    helpers : functions
        Plain functions that the kernel calls by their names, to be inlined. Decorating them
        where they are defined would load numba before it is needed.
    """
    import numba

    # "contract" allows fused multiply-adds, but not a reordering of sums, whose results would then
    # depend on the machine.
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    if helpers:
        inlined = {f.__name__: numba.njit(inline="always", **options)(f) for f in helpers}
        kernel = FunctionType(kernel.__code__, {**kernel.__globals__, **inlined}, kernel.__name__)
    try:
        return numba.njit(cache=True, **options)(kernel)  # type: ignore[no-any-return]
    except RuntimeError:  # numba finds no folder that it may write to
        return numba.njit(**options)(kernel)  # type: ignore[no-any-return]
