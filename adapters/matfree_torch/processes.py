"""Several processes that compute together: sums that end in the same bits, or in one error.

Every process goes through the same collectives in the same order. What could part them is
looked at on the way: an exception on one of them travels with the next sum, and so does a
checksum of whatever they must have in common.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from matfree.errors import MatfreeError

ProcessGroup: TypeAlias = "dist.ProcessGroup | Literal['world'] | None"
"""A group of ``torch.distributed``, "world" for the default one, None for this process alone."""

T = TypeVar("T")

_BITS = 32  # of a checksum that travels with every sum
_SLAB = 1 << 20  # words of a tensor that are hashed at once


class ProcessError(MatfreeError, RuntimeError):
    """Processes that compute together cannot go on: one failed, is gone, or has other data."""


@final
class Processes:
    """A process group of ``torch.distributed``, and what this process can do in it.

    Its timeout is the one it was made with: ``init_process_group(timeout=...)``.

    Parameters
    ----------
    group : ProcessGroup, optional
        The default group where none is given.

    Raises
    ------
    ProcessError
        ``torch.distributed`` is not initialized, or this process is no member of the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ProcessError(
                "torch.distributed is not initialized; call "
                "torch.distributed.init_process_group(...) first, in a script started by torchrun."
            )
        self.group = dist.group.WORLD if group is None else group
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        if self.rank < 0:
            raise ProcessError(
                "this process is not a member of the group; build the operator on its members only."
            )

    def sum(self, x: Tensor, *, what: str = "a sum") -> Tensor:
        """The sum of a tensor over all processes, the same bits on each of them.

        Every entry is added up in one place, or one tree, and handed to all, so that no
        process sees another rounding.

        Parameters
        ----------
        x : Tensor
            Real or complex floating point or whole numbers, of one shape everywhere; left as
            it is.
        what : str
            How errors call it.

        Raises
        ------
        ProcessError
            A process is gone or late.

        Cost
        ----
        One all-reduce and one copy.
        """
        total = x.detach().clone(memory_format=torch.contiguous_format)
        flat = torch.view_as_real(total) if total.is_complex() else total
        self._collective(what, lambda: dist.all_reduce(flat, group=self.group))
        return total

    def gather(self, value: T, *, what: str = "an exchange") -> list[T]:
        """What every process has, in the order of the ranks; anything that can be pickled."""
        found: list[Any] = [None] * self.size
        self._collective(what, lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def agree(self, name: str, value: Any) -> None:
        """Refuse, on all processes, that they have different values of something.

        Parameters
        ----------
        name : str
            What it is, as errors call it.
        value
            A tensor, a mapping of them, or anything whose ``repr`` tells it from others.

        Raises
        ------
        ProcessError
            They differ; it says which ranks have another value than the others.
        """
        self._compare(self.gather({name: checksum(value)}, what=f"comparing {name}"))

    def together(self, compute: Callable[[], T], *, what: str) -> T:
        """Compute something that may fail: where one process fails all end, with its reason."""
        value, failure = _attempt(compute)
        self._end_if_any(self.gather(_told(failure), what=what), failure, what)
        assert not isinstance(value, _Nothing)
        return value

    def add_up(
        self,
        compute: Callable[[], Tensor],
        like: Tensor,
        *,
        marks: Callable[[], Mapping[str, int]],
        what: str,
    ) -> Tensor:
        """The sum of what each process computes, with failures and disagreement in the same one.

        Parameters
        ----------
        compute : function without arguments
            Its exceptions end all processes.
        like : Tensor
            A tensor of the shape and data type of what is computed.
        marks : function without arguments
            Checksums, by name, of what must be the same on all processes.
        what : str
            How errors call it.

        Raises
        ------
        ProcessError
            Another process failed, a mark differs, or a process is gone. The one that failed
            raises its own error.

        Cost
        ----
        One all-reduce, of 33 numbers more.
        """
        value, failure = _attempt(lambda: (compute(), dict(marks())))
        part, own = (torch.zeros_like(like), {}) if isinstance(value, _Nothing) else value
        word = checksum(sorted(own.items()))
        signs = [failure is not None, *(word >> place & 1 for place in range(_BITS))]
        tail = torch.tensor(signs, dtype=like.dtype, device=like.device)
        total = self.sum(torch.cat((part.reshape(-1), tail)), what=what)
        failures, *bits = total[like.numel() :].tolist()
        if failures:
            self._end_if_any(self.gather(_told(failure), what=what), failure, what)
        if any(count not in (0, self.size) for count in bits):
            self._compare(self.gather(own, what=what))
        return total[: like.numel()].reshape(like.shape)

    def _collective(self, what: str, call: Callable[[], Any]) -> None:
        begin = time.monotonic()
        try:
            call()
        except RuntimeError as cause:  # torch's own errors of connections and timeouts are such
            seconds = time.monotonic() - begin
            raise ProcessError(
                f"{what} over {self.size} processes broke off on rank {self.rank} after "
                f"{seconds:.1f} s ({str(cause).splitlines()[0][:200]}): another process has ended, "
                "or is later than the group's timeout. Its own output says why; start all of them "
                "again, with the same checkpoint= to go on from where they were."
            ) from cause

    def _end_if_any(self, told: Sequence[str | None], own: Exception | None, what: str) -> None:
        if own is not None:
            raise own
        failed = [rank for rank, text in enumerate(told) if text is not None]
        if failed:
            raise ProcessError(
                f"{what} failed on {_ranks(failed)}, so that rank {self.rank} ends too: "
                f"{told[failed[0]]}"
            )

    def _compare(self, everyone: Sequence[Mapping[str, int]]) -> None:
        """Name the ranks, and what they have that the others have not."""
        for name in everyone[0]:
            holders: dict[int | None, list[int]] = {}
            for rank, marks in enumerate(everyone):
                holders.setdefault(marks.get(name), []).append(rank)
            if len(holders) > 1:
                _refuse(name, sorted(holders.values(), key=lambda ranks: (len(ranks), ranks)))


def processes_of(process_group: ProcessGroup) -> Processes | None:
    """What an operator's ``process_group`` argument stands for.

    Raises
    ------
    TypeError
        It is no process group.
    ProcessError
        As for :class:`Processes`.
    """
    if process_group is None:
        return None
    if process_group == "world":
        return Processes()
    if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup, 'world' for the default one, "
            f"or None for this process alone: got {process_group!r}."
        )
    return Processes(process_group)


def checksum(value: Any) -> int:
    """A whole number below 2^32 that tells values apart: of the bits of tensors, else of a repr."""
    if isinstance(value, Tensor):
        value = (str(value.dtype), tuple(value.shape), _mixed(value))
    elif isinstance(value, Mapping):
        value = [(name, checksum(x)) for name, x in value.items()]
    digest = hashlib.blake2b(repr(value).encode(), digest_size=_BITS // 8).digest()
    return int.from_bytes(digest, "little")


def _mixed(x: Tensor) -> int:
    """A sum over a tensor's bits: whole numbers wrap around, so no order changes it."""
    flat = x.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    missing = -len(flat) % 8
    if missing:
        flat = torch.cat((flat, flat.new_zeros(missing)))
    words, total = flat.view(torch.int64), torch.zeros((), dtype=torch.int64, device=x.device)
    for begin in range(0, len(words), _SLAB):
        slab = words[begin : begin + _SLAB]
        places = torch.arange(begin, begin + len(slab), device=x.device)
        mixed = (slab ^ (slab >> 29)) * 0x1F83D9ABFB41BD6B  # an odd constant, from SHA-512
        total += ((mixed ^ (mixed >> 31)) * (2 * places + 1)).sum()
    return int(total)


class _Nothing:
    """What an attempt that failed returns."""


def _attempt(compute: Callable[[], T]) -> tuple[T | _Nothing, Exception | None]:
    try:
        return compute(), None
    except Exception as failure:
        return _Nothing(), failure


def _told(failure: Exception | None) -> str | None:
    return None if failure is None else f"{type(failure).__name__}: {failure}"


def _refuse(name: str, groups: Sequence[Sequence[int]]) -> NoReturn:
    """The smallest group is the one that is probably wrong."""
    *others, most = groups
    parts = [_ranks(ranks) for ranks in others]
    verb = "has" if len(others) == 1 and len(others[0]) == 1 else "have"
    raise ProcessError(
        f"{' and '.join(parts)} {verb} another value than {_ranks(most)} for {name}; all processes "
        "need the same one."
    )


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > 8:
        return f"ranks {', '.join(map(str, ranks[:8]))} and {len(ranks) - 8} more"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
