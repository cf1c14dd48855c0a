"""What every estimator is asked for: how much to spend, how well to know, how to go about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from matfree.protocol import ProbeKind
from matfree.results import EigenResult

DEFAULT_PROBES = 32
"""Products where neither a number of probes, a budget nor a tolerance is given."""

DEFAULT_BUDGET = 1000
"""Products where a tolerance is given without a budget."""

_BLOCK_ENTRIES = 1 << 25  # entries of the default block of probes
SMALL_ENTRIES = 1 << 18
"""Of a block that costs next to no memory: up to here it is wider, since a dense matrix is read
once for all of it, and probes may be kept."""


@final
@dataclass(frozen=True)
class Plan:
    """How much may be spent, how well it must be known, and how it is done."""

    num_probes: int | None
    budget: int
    rtol: float | None
    atol: float | None
    block_size: int
    seed: int
    kind: ProbeKind
    eigenpairs: EigenResult | int = 0
    first_probe: int = 0

    @classmethod
    def make(
        cls,
        size: int,
        *,
        num_probes: int | None,
        rtol: float | None,
        atol: float | None,
        max_matvecs: int | None,
        block_size: int | None,
        seed: int,
        kind: ProbeKind,
        eigenpairs: EigenResult | int = 0,
        first_probe: int = 0,
    ) -> Plan:
        """Read the arguments that every estimator has, or say what is wrong with them."""
        for name, count in (("num_probes", num_probes), ("max_matvecs", max_matvecs)):
            require_whole(name, count)
        for name, tolerance in (("rtol", rtol), ("atol", atol)):
            if tolerance is not None and not 0 <= tolerance < math.inf:
                raise ValueError(f"{name} must be finite and not negative: got {tolerance}.")
        adaptive = rtol is not None or atol is not None
        if num_probes is not None and (adaptive or max_matvecs is not None):
            raise ValueError(
                "give either num_probes (a fixed number) or rtol/atol with max_matvecs (as many "
                "as needed), not both."
            )
        budget = max_matvecs or (DEFAULT_BUDGET if adaptive else DEFAULT_PROBES)
        block = block_size_for(size, block_size, num_probes)
        return cls(num_probes, budget, rtol, atol, block, seed, kind, eigenpairs, first_probe)

    @property
    def adaptive(self) -> bool:
        """Whether a tolerance was given."""
        return self.rtol is not None or self.atol is not None

    def tolerance(self, size: float) -> float:
        """The half-width to reach for a value of this size."""
        return (self.atol or 0.0) + (self.rtol or 0.0) * size


def block_size_for(size: int, block_size: int | None, total: int | None = None) -> int:
    """The number of vectors to send at once: as asked, or what fits a moderate memory.

    Where a ``total`` is known it is dealt out evenly, in multiples of 4: a narrow block at
    the end costs nearly as much as a wide one.
    """
    require_whole("block_size", block_size)
    if block_size is not None:
        return block_size
    widest = min(64, max(32, SMALL_ENTRIES // size))
    most = max(1, min(widest, _BLOCK_ENTRIES // size))
    if total is None or total <= most:
        return most
    share = math.ceil(total / math.ceil(total / most))
    return min(most, 4 * math.ceil(share / 4))


def slices(size: int, block_size: int, start: int = 0) -> Iterator[slice]:
    """Consecutive slices of at most ``block_size``, from ``start`` to ``size``."""
    for begin in range(start, size, block_size):
        yield slice(begin, min(begin + block_size, size))


def require_whole(name: str, count: Any) -> None:
    """Refuse anything but None and positive whole numbers."""
    whole = hasattr(count, "__index__") and not isinstance(count, bool)
    if count is not None and (not whole or count < 1):
        raise ValueError(f"{name} must be a whole number, at least 1: got {count!r}.")
