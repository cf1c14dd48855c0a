r"""Integer hashes of tensors, which change with every bit that is written to them.

Torch's version counters do not register writes through ``.data``, NumPy views, or other tensors on
the same memory. The values themselves have to be read. The hash is the weighted sum

.. math::

    h = \sum_j (2 j + 1) \, c \sum_i r_i \, b_{j i} \pmod{2^{64}}

over all entries, taken as integers b_ji of up to 32 bits in blocks j of fixed length. The weights
r_i are odd pseudo-random numbers and c is odd, so that one changed entry always changes h. Several
changes cancel with a probability of about 2^-32 at most.

The cost is one read of the tensors. Small tensors are concatenated first, because otherwise the
calls would take longer than the arithmetic. On a CUDA device the result is copied to the host
asynchronously.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, final

import torch
from torch import Tensor

_BLOCK_ENTRIES = 1 << 16  # entries that share one vector of weights
_NUM_AT_ONCE = 256  # on a device, where it bounds the temporary memory to 128 MiB
_LARGE = 1 << 16  # tensors with more entries are read where they are, without concatenation
_FACTOR = 0x1E3779B97F4A7C15  # odd: 2^61 divided by the golden ratio, rounded to odd
_WORD_MASK = (1 << 64) - 1
_COMPONENTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}

PendingHash = Callable[[], tuple[int, ...]]
"""Waits for a hash that a device is computing, and returns it."""
_Reader: TypeAlias = Tensor | Callable[[], Tensor]


def strided_components(x: Tensor) -> Iterator[Tensor]:
    """The strided tensors that hold the values and indices of a tensor on this process.

    They are the components of sparse tensors, the local shard of a DTensor, and the tensor itself
    in the usual case.
    """
    if hasattr(x, "__tensor_flatten__"):  # a DTensor, a nested or a quantized tensor
        for name in x.__tensor_flatten__()[0]:
            component = getattr(x, name)
            if isinstance(component, Tensor):  # a DTensor lists its device mesh as well
                yield from strided_components(component)
    elif x.layout in _COMPONENTS:
        for name in _COMPONENTS[x.layout]:
            yield getattr(x.detach(), name)()
    elif x.layout == torch.strided and x.device.type != "meta":
        yield x.detach()


@final
class TensorHash:
    """The hashes of several groups of tensors.

    Parameters
    ----------
    groups : sequence of sequences of Tensor
        Each group has one number for every device on which it has tensors.
    max_entries : int, optional
        Tensors with more entries are sampled with a constant stride, so that a write to few of
        their entries may be missed. By default every entry is read.
    """

    def __init__(
        self, groups: Sequence[Sequence[Tensor]], max_entries: Sequence[int | None] | None = None
    ) -> None:
        limits = max_entries or [None] * len(groups)
        self._plans = [
            _Plan(number, device, [_integers(x) for x in _sampled(tensors, limit)])
            for number, (group, limit) in enumerate(zip(groups, limits, strict=True))
            for device, tensors in _by_device(group).items()
        ]
        self._count = len(groups)

    @property
    def asynchronous(self) -> bool:
        """Whether a device computes a part of the hashes while the host continues."""
        return any(plan.device.type == "cuda" for plan in self._plans)

    def start(self) -> PendingHash:
        """Start to compute the hashes of the present values."""
        totals = [(plan.group, _to_host(plan.total())) for plan in self._plans]

        def wait() -> tuple[int, ...]:
            hashes = [0] * self._count
            for group, number in totals:
                hashes[group] = (hashes[group] * _FACTOR + number()) & _WORD_MASK
            return tuple(hashes)

        return wait


def hash_of(tensors: Sequence[Tensor]) -> int:
    """The hash of some tensors, in [0, 2^64)."""
    return TensorHash([tensors]).start()()[0]


class _Plan(NamedTuple):
    """The bits of the tensors of one group on one device."""

    group: int
    device: torch.device
    readers: list[_Reader]

    def total(self) -> Tensor:
        small: dict[torch.dtype, list[Tensor]] = {}
        large: list[Tensor] = []
        for x in self.readers:
            bits = x if isinstance(x, Tensor) else x()
            if bits.numel() > _LARGE:
                large.append(bits)
            else:
                small.setdefault(bits.dtype, []).append(bits)
        weights, factors = _weights(self.device)
        flat = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in small.values()]
        sums = torch.cat([y for bits in (*flat, *large) for y in _block_sums(bits, weights)])
        while len(factors) < len(sums):
            factors = _FACTORS[self.device] = _odd_multiples(2 * len(factors), self.device)
        # Integer arithmetic of torch wraps around, which is arithmetic modulo 2^64.
        return (sums * factors[: len(sums)]).sum()


def _by_device(group: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for x in group:
        for component in strided_components(x):
            if component.numel():
                found.setdefault(component.device, []).append(component)
    return found


def _sampled(tensors: list[Tensor], limit: int | None) -> list[Tensor]:
    if limit is None:
        return tensors
    return [x if x.numel() <= limit else x.reshape(-1)[:: -(-x.numel() // limit)] for x in tensors]


def _integers(x: Tensor) -> _Reader:
    """The bits of a tensor as a flat tensor of integers of at most 32 bits.

    They are a view of a contiguous tensor, and otherwise a function that copies it.
    """
    view = x.is_contiguous() and not (x.is_conj() or x.is_neg())
    return _flat_integers(x) if view else partial(_flat_integers, x)


def _flat_integers(x: Tensor) -> Tensor:
    x = x.resolve_conj().resolve_neg()
    flat = (torch.view_as_real(x) if x.is_complex() else x).contiguous().view(-1)
    integers = {1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    return flat if flat.dtype == integers else flat.view(integers)


def _block_sums(bits: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """The weighted sums of the blocks of a flat tensor."""
    whole = bits.numel() // _BLOCK_ENTRIES
    step = 1 if bits.device.type == "cpu" else _NUM_AT_ONCE  # temporaries fit into the cache
    for first in range(0, whole, step):
        last = min(first + step, whole)
        blocks = bits[first * _BLOCK_ENTRIES : last * _BLOCK_ENTRIES].view(-1, _BLOCK_ENTRIES)
        yield (blocks * weights).sum(dim=1)
    rest = bits[whole * _BLOCK_ENTRIES :]
    if rest.numel():
        yield (rest * weights[: rest.numel()]).sum().reshape(1)


_WEIGHTS: dict[torch.device, Tensor] = {}
_FACTORS: dict[torch.device, Tensor] = {}


def _weights(device: torch.device) -> tuple[Tensor, Tensor]:
    """The weights within a block, and the factors of the blocks."""
    if device not in _WEIGHTS:
        with torch.inference_mode(False):
            generator = torch.Generator().manual_seed(0)
            low, high = (
                torch.randint(1 << 32, (_BLOCK_ENTRIES,), generator=generator, dtype=torch.int64)
                for _ in range(2)
            )
            _WEIGHTS[device] = ((high << 32) | low | 1).to(device)
            _FACTORS[device] = _odd_multiples(64, device)
    return _WEIGHTS[device], _FACTORS[device]


def _odd_multiples(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return (2 * torch.arange(count, device=device) + 1) * _FACTOR


def _to_host(total: Tensor) -> Callable[[], int]:
    """Copy a number to the host without waiting for it."""
    if total.device.type != "cuda":
        return lambda: int(total)
    host = torch.empty((), dtype=total.dtype, pin_memory=True)
    host.copy_(total, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
    copied.record(torch.cuda.current_stream(total.device))

    def wait() -> int:
        copied.synchronize()  # only for the work that was queued before the hash
        return int(host)

    return wait
