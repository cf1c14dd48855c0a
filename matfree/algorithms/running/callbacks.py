"""Callbacks: how a caller watches a run and stops it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree.results import Estimate

Callback = Callable[[Estimate], bool | None]


def asked_to_stop(callback: Callable[[Any], bool | None] | None, state: Any) -> bool:
    """Whether a callback asks to stop: by returning True or raising StopIteration."""
    if callback is None:
        return False
    try:
        return callback(state) is True
    except StopIteration:
        return True
