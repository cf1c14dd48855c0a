"""What a run was to keep in memory, as a result says it."""

from __future__ import annotations

from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_KEPT = {
    "full": "every Lanczos vector",
    "half": "every Lanczos vector in 16 bits",
    "none": "no Lanczos vectors",
}


def memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    """The line of a printed result: none where no budget was given."""
    if not memory:
        return []
    kept, at_once = _KEPT[memory["basis"]], memory["at_once"]
    size = f"{readable(memory['predicted'])} of {readable(memory['budget'])}"
    return [("memory", f"{kept}, {at_once} at once: {size}")]


def readable(size: float) -> str:
    """Bytes in a unit that suits them."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"
