"""Marks: a few numbers by which processes see that they hold the same tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 1 << 20  # entries that are looked at together
_FACTOR = 0x1E3779B97F4A7C15  # odd: 2^61 over the golden ratio, and a bit
_HASH_BITS = 20  # small enough to travel as a float32


class Checksum(NamedTuple):
    """A few numbers that must be the same in all processes."""

    what: str
    """What they tell apart, as the error names it."""
    remedy: str
    """What to do where they differ."""
    numbers: tuple[float, ...]
    tolerance: float = 0.0


def checksum_of_tensors(what: str, remedy: str, tensors: Sequence[Tensor]) -> Checksum:
    """A mark of tensors that must agree to the last bit."""
    total = 0
    for number, x in enumerate(tensors):
        total += (2 * number + 1) * _hash(x.detach())
    return Checksum(what, remedy, (float(total % (1 << _HASH_BITS)),))


def checksum_of_vectors(what: str, remedy: str, X: Tensor) -> Checksum:
    """A mark of vectors that must agree to rounding: processes may round differently."""
    flat = X.detach().reshape(-1)
    sums = torch.zeros(3, dtype=torch.float64, device=X.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK].to(torch.float64)
        places = torch.arange(start, start + part.numel(), dtype=torch.float64, device=X.device)
        waves = torch.cos(places), torch.sin(places)
        sums += torch.stack([part @ part, *(part @ wave for wave in waves)])
    square, *parts = sums.tolist()  # the host waits once
    if not 0 < square < math.inf:
        return Checksum(what, remedy, (0.0, 0.0))
    size, tolerance = math.sqrt(square), math.sqrt(torch.finfo(X.dtype).eps)
    return Checksum(what, remedy, tuple(part / size for part in parts), tolerance)


def _hash(x: Tensor) -> int:
    """Some bits that depend on every bit of a tensor and on where it is."""
    if x.layout != torch.strided or not x.numel():
        return 0
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
    bits = x.contiguous().reshape(-1).view(integers[x.element_size()])
    total = 0
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        places = torch.arange(start, start + part.numel(), device=x.device)
        total += int(((part + 1) * ((2 * places + 1) * _FACTOR)).sum())  # modulo 2^64
    return (total % (1 << 64)) >> (64 - _HASH_BITS)
