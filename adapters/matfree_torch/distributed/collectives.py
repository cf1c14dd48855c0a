"""Collective operations among the processes of a group, checked before they communicate.

All processes make the same calls in the same order. Each reduction is preceded by a short header,
a few numbers of every process: whether it failed, the weight of its data, the number of entries it
will send, and checksums of its weights and of the vectors it multiplies. The header prevents three
failures: waiting for a process that has already raised an exception, adding contributions that
belong to different matrices, and reducing tensors of different sizes, on which gloo ends the
process without an error message.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, final

import torch
import torch.distributed as dist
from torch import Tensor

from matfree import MatfreeError, OperatorError
from matfree.probes import agreed_seed
from matfree.protocol import Seed, T
from matfree_torch.distributed.checksums import (
    Checksum,
    name_processes,
    numbers_of,
    require_equal_checksums,
)

# The header has a fixed length, because processes that disagree may be in different calls.
_HEADER_LENGTH = 10
_SIZES = "numbers of vectors", "pass the same arguments in all processes"


class LostProcessError(MatfreeError, RuntimeError):
    """A collective operation failed because a process has died, hangs, or makes other calls.

    Examples
    --------
    It is caught by an except clause for all errors of this library:

    >>> import matfree as mf
    >>> from matfree_torch import LostProcessError
    >>> issubclass(LostProcessError, mf.MatfreeError)
    True
    """


@final
class Communicator:
    """Collective operations of the process group that this process belongs to.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        Its timeout bounds the duration of every collective operation.
    device : torch.device
        The device of the tensors that are communicated; NCCL requires a GPU.

    Raises
    ------
    TypeError
        ``group`` is not a process group.
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
            raise ValueError(
                "this process does not belong to process_group; pass a group that contains it, or "
                "make this call only in the processes of the group."
            )
        host = zlib.crc32(socket.gethostname().encode())
        local = sum(int(other) == host for (other,) in self.all_gather_numbers([host]))
        self.num_sharing_memory = local if device.type == "cpu" else 1
        """The number of processes that share the memory of ``device``, including this one."""

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; the result is bitwise the same in all of them.

        Raises
        ------
        LostProcessError
            Not all processes took part within the group's timeout.
        """
        with self._loss_reported():
            dist.all_reduce(_as_real(x), group=self.group)
        return x

    def all_gather(self, local: Tensor, row_ranges: Sequence[range]) -> Tensor:
        """Gather a block from the rows of all processes, and return it in all of them.

        Parameters
        ----------
        local : (rows, ...)
            The rows of this process.
        row_ranges : sequence of range
            The rows of each process, by rank. They may differ in number, and may be empty.
        """
        full = local.new_empty((row_ranges[-1].stop, *local.shape[1:]))
        full[_slice(row_ranges[self.rank])] = local
        with self._loss_reported():
            # One broadcast per process, because all_gather of gloo requires equal sizes.
            for rank, rows in _rows_by_rank(full, row_ranges):
                dist.broadcast(rows, group=self.group, group_src=rank)
        return full

    def reduce_scatter(self, x: Tensor, row_ranges: Sequence[range]) -> Tensor:
        """Sum a block over all processes, and return the rows of this process.

        ``x`` is used as workspace, and its contents are undefined afterwards.
        """
        with self._loss_reported():
            for rank, rows in _rows_by_rank(x, row_ranges):
                dist.reduce(rows, group=self.group, group_dst=rank)
        return x[_slice(row_ranges[self.rank])].clone()

    def all_to_all(self, x: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send some rows of a block to each process, and receive rows from each.

        Parameters
        ----------
        x : (rows, k)
            The rows to send, in the order of the ranks that receive them.
        sent, received : sequences of int
            The number of rows that this process sends to, and receives from, each rank.

        Returns
        -------
        The received rows, in the order of the ranks that sent them.

        Raises
        ------
        OperatorError
            The processes have different numbers of columns.
        """
        self.require_same(Checksum(*_SIZES, (float(x.shape[1]),)))
        y = x.new_empty((sum(received), x.shape[1]))
        if x.shape[1]:
            with self._loss_reported():
                dist.all_to_all_single(
                    _as_real(y), _as_real(x), list(received), list(sent), group=self.group
                )
        return y

    def all_gather_numbers(self, numbers: Sequence[float]) -> list[list[float]]:
        """Gather the same number of real numbers from every process, in rank order."""
        table = torch.zeros(self.size, len(numbers), dtype=torch.float64, device=self.device)
        table[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        gathered: list[list[float]] = self.all_reduce(table).tolist()
        return gathered

    def require_same(self, *checksums: Checksum) -> None:
        """Raise OperatorError in all processes if their checksums differ."""
        require_equal_checksums(self.all_gather_numbers(numbers_of(checksums)), checksums)

    def reduce_checked(
        self,
        local: Callable[[], tuple[Tensor, float]],
        like: Tensor,
        checksums: Sequence[Checksum],
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, float]:
        """Sum a tensor and a weight over all processes, after comparing checksums.

        Parameters
        ----------
        local : function
            Computes the tensor and the weight of this process. An exception that it raises in one
            process is raised in all of them.
        like : Tensor
            A tensor of the shape, data type and device of the local one.
        checksums : sequence of Checksum
            What must be equal in all processes.
        reduce : function, optional
            The reduction applied to the local tensor, such as a reduce-scatter; ``all_reduce`` by
            default.

        Returns
        -------
        total : Tensor
            The reduced tensor.
        weight : float
            The sum of the weights.

        Raises
        ------
        OperatorError
            Another process failed, or the checksums differ.
        LostProcessError
            Not all processes took part.
        """
        partial, weight, failure = torch.zeros_like(like), 0.0, None
        try:
            partial, weight = local()
        except Exception as error:  # of any kind: the other processes must not wait for this one
            failure = error
        checksums = [Checksum(*_SIZES, (float(like.numel()),)), *checksums]
        own = [float(failure is not None), weight, *numbers_of(checksums)]
        assert len(own) <= _HEADER_LENGTH
        rows = self.all_gather_numbers(own + [0.0] * (_HEADER_LENGTH - len(own)))
        if any(row[0] for row in rows):
            self._raise_everywhere(failure)
        require_equal_checksums([row[2:] for row in rows], checksums)
        if partial.numel() or reduce:  # a ``reduce`` may return rows even where it is given none
            partial = (reduce or self.all_reduce)(partial.contiguous())
        return partial, math.fsum(row[1] for row in rows)

    def all_gather_object(self, local: Callable[[], T]) -> list[T]:
        """Call ``local`` in every process and return the results in rank order.

        The results are pickled, and should be small. An exception in one process is raised in all
        of them, as in :meth:`reduce_checked`.
        """
        own, failure = None, None
        try:
            own = local()
        except Exception as error:  # the other processes wait for this one
            failure = error
        gathered = self._gather_pickled((failure is not None, own))
        if any(failed for failed, _ in gathered):
            self._raise_everywhere(failure)
        return [result for _, result in gathered]

    def agreed_seed(self, seed: Seed) -> int:
        """The seed that all processes were given, or entropy drawn by process 0 if it is None."""
        return agreed_seed(seed, self.all_gather_object)

    def _gather_pickled(self, own: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        with self._loss_reported():
            dist.all_gather_object(gathered, own, group=self.group)
        return gathered

    @contextlib.contextmanager
    def _loss_reported(self) -> Iterator[None]:
        """Translate torch's error about a missing process into LostProcessError."""
        begin = time.monotonic()
        try:
            yield
        except RuntimeError as cause:
            reason = re.sub(r"^\[[^]]*\] ", "", str(cause).splitlines()[0])
            raise LostProcessError(
                f"a collective operation among {self.size} processes failed in process "
                f"{self.rank} after {time.monotonic() - begin:.1f} s ({reason[:120]}): one of them "
                "has died, hangs, or makes other calls. Read the error message of that process; "
                "then end this run and start it again, with checkpoint= to resume it."
            ) from cause

    def _raise_everywhere(self, failure: Exception | None) -> NoReturn:
        """Raise this process's exception, or OperatorError with the reason of another one's."""
        own = None if failure is None else f"{type(failure).__name__}: {failure}"
        reasons = self._gather_pickled(own)
        if failure is not None:
            raise failure
        failed = [rank for rank, reason in enumerate(reasons) if reason is not None]
        raise OperatorError(
            f"{name_processes(failed)} failed in this call, so all processes stop; the reason in "
            f"process {failed[0]} is {reasons[failed[0]]}"
        )


def _rows_by_rank(x: Tensor, row_ranges: Sequence[range]) -> Iterator[tuple[int, Tensor]]:
    """The rank and the rows of every process that has any, as contiguous views of a block."""
    for rank, row_range in enumerate(row_ranges):
        rows = _as_real(x[_slice(row_range)])
        if rows.numel():
            yield rank, rows


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def _as_real(x: Tensor) -> Tensor:
    """A real view of a tensor, since not every backend communicates complex numbers."""
    return torch.view_as_real(x) if x.is_complex() else x
