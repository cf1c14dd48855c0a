"""Sums over the processes of a group that each hold a share of the data.

All processes make the same calls in the same order. Before every sum travel a few numbers of
each process: whether it failed, how much it will send, and marks by which all see that they hold
the same weights and multiply the same vectors. So no process is waited for that has already given
up, and none adds what belongs to another matrix, or is of another size, which gloo answers by
ending the process without a word.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor

from matfree import MatfreeError, OperatorError
from matfree.probes import agreed_seed
from matfree.protocol import Seed
from matfree_torch.distributed.checksums import Checksum

T = TypeVar("T")

_HEADER = 10  # numbers sent before a sum, always as many: processes may be in different ones
_SIZES = "numbers of vectors", "give all of them the same arguments"


class LostProcessError(MatfreeError, RuntimeError):
    """A process of the group has died, hangs, or does something else.

    Examples
    --------
    >>> import matfree as mf
    >>> from matfree_torch import LostProcessError
    >>> issubclass(LostProcessError, mf.MatfreeError)  # what an except clause for all of ours takes
    True
    """


@final
class Communicator:
    """The processes of a group, this one among them.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        Its own timeout bounds every wait.
    device : torch.device
        Where what is summed lies: a GPU for NCCL.

    Raises
    ------
    TypeError
        It is no process group; without ``init_process_group`` there is none.
    ValueError
        This process does not belong to the group.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                "process_group must be a torch.distributed.ProcessGroup, such as "
                "torch.distributed.group.WORLD after init_process_group(): got "
                f"{type(group).__name__}."
            )
        self.group, self.device = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process does not belong to process_group; leave it out here.")
        name = zlib.crc32(socket.gethostname().encode())
        here = sum(int(other) == name for (other,) in self.all_gather_numbers([name]))
        self.num_sharing_memory = here if device.type == "cpu" else 1
        """How many of the processes share one memory."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place, the same to the bit in all of them.

        Raises
        ------
        LostProcessError
            Not all of them took part within the group's timeout.
        """
        with self._together():
            dist.all_reduce(_real(x), group=self.group)
        return x

    def all_gather(self, own: Tensor, row_ranges: Sequence[range]) -> Tensor:
        """A block of whose rows each process has some, whole in all of them."""
        whole = own.new_empty((row_ranges[-1].stop, *own.shape[1:]))
        whole[_slice(row_ranges[self.rank])] = own
        with self._together():
            for rank, part in _parts(whole, row_ranges):
                dist.broadcast(part, group=self.group, group_src=rank)
        return whole

    def reduce_scatter(self, x: Tensor, row_ranges: Sequence[range]) -> Tensor:
        """The rows of this process of a block's sum over all; what is in ``x`` is lost."""
        with self._together():
            for rank, part in _parts(x, row_ranges):
                dist.reduce(part, group=self.group, group_dst=rank)
        return x[_slice(row_ranges[self.rank])].clone()

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Some rows of a block to each process, and theirs to this one; all in rank order.

        Raises
        ------
        OperatorError
            The processes have other numbers of columns.
        """
        self.require_same(Checksum(*_SIZES, (float(x.shape[1]),)))
        y = x.new_empty((sum(received), x.shape[1]))
        if x.shape[1]:
            with self._together():
                dist.all_to_all_single(
                    _real(y), _real(x), list(received), list(sent), group=self.group
                )
        return y

    def all_gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every process's numbers, by rank."""
        table = torch.zeros(self.size, len(numbers), dtype=torch.float64, device=self.device)
        table[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        gathered: list[list[float]] = self.all_reduce(table).tolist()
        return gathered

    def require_same(self, *marks: Checksum) -> None:
        """Raise OperatorError in all processes where they disagree."""
        self._compare(self.all_gather_numbers(_numbers(marks)), marks)

    def reduce_checked(
        self,
        local: Callable[[], tuple[Tensor, float]],
        like: Tensor,
        marks: Sequence[Checksum],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, float]:
        """The sums over all processes of a tensor like ``like`` and of a number.

        Parameters
        ----------
        local : function
            Computes this process's; where it raises, all processes do.
        like : Tensor
            Of the shape, data type and device of a process's.
        marks : what must be the same in all processes
        reduce : function, optional
            The sum, or the part of it that this process is to have; ``sum`` by default.

        Raises
        ------
        OperatorError
            Another process failed, or they disagree about a mark.
        LostProcessError
            Not all processes took part.
        """
        part, weight, failure = torch.zeros_like(like), 0.0, None
        try:
            part, weight = local()
        except Exception as error:  # whatever it is, the others must not wait for it
            failure = error
        marks = [Checksum(*_SIZES, (float(like.numel()),)), *marks]
        own = [float(failure is not None), weight, *_numbers(marks)]
        assert len(own) <= _HEADER
        rows = self.all_gather_numbers(own + [0.0] * (_HEADER - len(own)))
        if any(row[0] for row in rows):
            self._give_up(failure)
        self._compare([row[2:] for row in rows], marks)
        total = (reduce or self.all_reduce)(part.contiguous()) if part.numel() or reduce else part
        return total, math.fsum(row[1] for row in rows)

    def all_gather_object(self, local: Callable[[], T]) -> list[T]:
        """What this function returns in every process, by rank; small things.

        Raises as ``add_up`` does.
        """
        own, failure = None, None
        try:
            own = local()
        except Exception as error:  # the others wait for an answer
            failure = error
        answers = self._objects((failure is not None, own))
        if any(failed for failed, _ in answers):
            self._give_up(failure)
        return [answer for _, answer in answers]

    def agreed_seed(self, seed: Seed) -> int:
        """A seed that all processes have: process 0's entropy, where none is given."""
        return agreed_seed(seed, self.all_gather_object)

    def _objects(self, own: Any) -> list[Any]:
        """Small things of all processes, by rank."""
        answers: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(answers, own, group=self.group)
        return answers

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Explain what torch says when not all take part."""
        begin = time.monotonic()
        try:
            yield
        except RuntimeError as cause:
            reason = re.sub(r"^\[[^]]*\] ", "", str(cause).splitlines()[0])
            raise LostProcessError(
                f"an exchange among {self.size} processes failed in process {self.rank} after "
                f"{time.monotonic() - begin:.1f} s ({reason[:120]}): one of them has died, hangs, "
                "or makes other calls. Look at its own message; then end this run and start it "
                "again, with checkpoint= to go on from where it was."
            ) from cause

    def _give_up(self, failure: Exception | None) -> NoReturn:
        """Tell all processes what failed where; each process that failed raises its own error."""
        own = None if failure is None else f"{type(failure).__name__}: {failure}"
        told = self._objects(own)
        if failure is not None:
            raise failure
        failed = [rank for rank, reason in enumerate(told) if reason is not None]
        raise OperatorError(
            f"{_named(failed)} failed here, so all processes stop; the reason in process "
            f"{failed[0]} is {told[failed[0]]}"
        )

    def _compare(self, rows: list[list[float]], marks: Sequence[Checksum]) -> None:
        begin = 0
        for mark in marks:
            end = begin + len(mark.numbers)
            first = rows[0][begin:end]
            others = [
                rank
                for rank, row in enumerate(rows)
                if any(
                    not abs(a - b) <= mark.tolerance
                    for a, b in zip(row[begin:end], first, strict=True)
                )
            ]
            if others:
                verb = "has" if len(others) == 1 else "have"
                raise OperatorError(
                    f"{_named(others)} {verb} other {mark.what} than process 0; {mark.remedy}."
                )
            begin = end


def _parts(x: Tensor, row_ranges: Sequence[range]) -> Iterator[tuple[int, Tensor]]:
    """The rows of each process in a contiguous block, where there are any."""
    for rank, rows in enumerate(row_ranges):
        part = _real(x[_slice(rows)])
        if part.numel():
            yield rank, part


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _numbers(marks: Sequence[Checksum]) -> list[float]:
    return [number for mark in marks for number in mark.numbers]


def _named(ranks: list[int]) -> str:
    noun = "process" if len(ranks) == 1 else "processes"
    return f"{noun} {', '.join(map(str, ranks))}"
