r"""Checksums with which processes detect that they hold different tensors.

Comparing tensors across processes would mean communicating them. Instead, each process reduces
its tensors to a few numbers, which travel in the header of the next reduction.

Weights and buffers must agree to the last bit. Their checksum is the leading 20 bits of an integer
hash of all entries, see :mod:`matfree_torch.distributed.tensor_hash`, which agree by chance for one
pair of tensors in a million. Blocks of vectors need only agree to rounding. Their checksum is two
coefficients of a Fourier transform, relative to the norm of the block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from matfree import OperatorError
from matfree_torch.distributed.tensor_hash import hash_of

_CHUNK_ENTRIES = 1 << 20  # entries reduced at a time, which bounds the temporary memory
_HASH_BITS = 20  # few enough to be exact even in float32


class Checksum(NamedTuple):
    """A few numbers that must be equal in all processes."""

    what: str
    """A plural noun for what is compared, used in the error message."""
    remedy: str
    """The advice with which the error message ends."""
    numbers: tuple[float, ...]
    tolerance: float = 0.0
    """The largest absolute difference that counts as equal."""


def numbers_of(checksums: Sequence[Checksum]) -> list[float]:
    """The numbers of several checksums in one list, as they are communicated."""
    return [number for checksum in checksums for number in checksum.numbers]


def require_equal_checksums(
    by_rank: Sequence[Sequence[float]], checksums: Sequence[Checksum]
) -> None:
    """Raise OperatorError, naming the ranks, if a checksum of any process differs from process 0's.

    Parameters
    ----------
    by_rank : sequence of sequences of float
        The numbers of every process, in the order of ``numbers_of(checksums)``.
    checksums : sequence of Checksum
        Those of this process.
    """
    begin = 0
    for checksum in checksums:
        end = begin + len(checksum.numbers)
        first = by_rank[0][begin:end]
        others = [
            rank
            for rank, row in enumerate(by_rank)
            if any(
                not abs(a - b) <= checksum.tolerance  # this form is also true for NaN
                for a, b in zip(row[begin:end], first, strict=True)
            )
        ]
        if others:
            verb, owner = ("differs", "its") if len(others) == 1 else ("differ", "their")
            raise OperatorError(
                f"{name_processes(others)} {verb} from process 0 in {owner} {checksum.what}; "
                f"{checksum.remedy}."
            )
        begin = end


def name_processes(ranks: Sequence[int]) -> str:
    """The noun and the ranks, as an error message names processes."""
    noun = "process" if len(ranks) == 1 else "processes"
    return f"{noun} {', '.join(map(str, ranks))}"


def checksum_of_tensors(what: str, remedy: str, tensors: Sequence[Tensor]) -> Checksum:
    """The checksum of tensors that must agree to the last bit."""
    return checksum_of_hash(what, remedy, hash_of(tensors))


def checksum_of_hash(what: str, remedy: str, number: int) -> Checksum:
    """The checksum of tensors of which the hash is known, see :class:`TensorHash`."""
    # The high bits depend on all lower ones; the low bits of a product do not.
    return Checksum(what, remedy, (float(number >> (64 - _HASH_BITS)),))


def checksum_of_vectors(what: str, remedy: str, X: Tensor) -> Checksum:
    """The checksum of vectors that must agree to rounding, because processes may round differently.

    The tolerance is sqrt(eps) relative to the norm of the block.
    """
    flat = X.detach().reshape(-1)
    sums = torch.zeros(3, dtype=torch.float64, device=X.device)
    for start in range(0, flat.numel(), _CHUNK_ENTRIES):
        chunk = flat[start : start + _CHUNK_ENTRIES].to(torch.float64)
        index = torch.arange(start, start + chunk.numel(), dtype=torch.float64, device=X.device)
        waves = torch.cos(index), torch.sin(index)
        sums += torch.stack([chunk @ chunk, *(chunk @ wave for wave in waves)])
    square, *coefficients = sums.tolist()  # the only synchronization with the host
    if not 0 < square < math.inf:
        # NaN differs from itself, so non-finite blocks are left to the caller's own checks.
        return Checksum(what, remedy, (0.0, 0.0))
    norm, tolerance = math.sqrt(square), math.sqrt(torch.finfo(X.dtype).eps)
    return Checksum(what, remedy, tuple(c / norm for c in coefficients), tolerance)
