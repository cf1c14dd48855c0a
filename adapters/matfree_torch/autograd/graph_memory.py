"""The memory that autograd graphs hold, and the memory that is available.

Both together decide how many graphs are kept and how many full vectors are multiplied at a time.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from matfree.results.record import readable
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import local_tensor

_GROUP = Path("/sys/fs/cgroup")  # the memory limits of a container
_VECTOR_SHARE = 16  # full vectors may take 1 / 16 of the available memory
_BLOCK_COPIES = 4  # of a block in a matvec: gathered, by vector, concatenated again, summed


@final
class SavedTensors:
    """The tensors that graphs recorded inside ``watched`` save for their backward passes.

    Parameters
    ----------
    known : list of Tensor
        Tensors that are in memory in any case, such as a model's parameters; they do not count.
    device : torch.device
    """

    def __init__(self, known: list[Tensor], device: torch.device) -> None:
        self._known = set(storage_sizes(known))
        self._device, self._limit = device, available_memory(device)
        self._alive: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self._packed = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A context that records saved tensors and raises MemoryError before memory runs out."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.unpack):
            yield

    def bytes(self) -> int:
        """The bytes held by the graphs that are still alive; shared storages count once."""
        found = storage_sizes(saved.tensor for saved in self._alive)
        return sum(size for address, size in found.items() if address not in self._known)

    def _pack(self, x: Tensor) -> _Saved:
        saved = _Saved(x)
        self._alive.add(saved)
        self._packed += sum(storage_sizes([x]).values())
        if self._limit is not None and self._packed > self._limit:
            # The running sum counts shared storages repeatedly, so the exact one decides.
            self._packed = self.bytes()
            if self._packed > self._limit:
                raise MemoryError(
                    f"the graph of the first batch's gradient takes {readable(self._packed)}, more "
                    f"than was available on {self._device}; pass smaller batches, for example a "
                    "DataLoader with a smaller batch_size: the result is the same."
                )
        return saved


@final
class _Saved:
    """A saved tensor in an object that is garbage-collected when the graph releases it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def unpack(self) -> Tensor:
        return self.tensor


def storage_sizes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The addresses of the storages of strided tensors, and their sizes in bytes."""
    # An asynchronous tensor, the result of a collective still in progress, wraps another one.
    local = [getattr(x, "elem", x) for x in map(local_tensor, tensors)]
    dense = [x.untyped_storage() for x in local if x.layout == torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in dense}


def available_memory(device: torch.device) -> int | None:
    """The bytes that can still be allocated on a device; None if they are unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Torch's caching allocator holds memory that it can reuse.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    found = [size for size in (_machine(), _container()) if size is not None]
    return min(found, default=None)


def _machine() -> int | None:
    """The available memory of the machine, including pages that only cache files."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        entries = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * (entries["MemAvailable"] + entries["SwapFree"])
    with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS reports the total only
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container() -> int | None:
    """The memory that the container may still allocate; None if it has no limit."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int(
            (_GROUP / "memory.max").read_text(encoding="ascii")
        )  # ValueError for "max", no limit
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        lines = (_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        files = {line.split()[0]: int(line.split()[1]) for line in lines}["inactive_file"]
        return max(0, limit - used + files)
    return None


def columns_at_once(communicator: Communicator, size: int, dtype: torch.dtype) -> int:
    """The number of full vectors that a process may hold at a time, equal in all processes."""
    free = available_memory(communicator.device)
    vector = _BLOCK_COPIES * size * torch.finfo(dtype).bits // 8
    fit = 1 if free is None else free // (_VECTOR_SHARE * communicator.num_sharing_memory * vector)
    return max(1, min(communicator.all_gather_object(lambda: int(fit))))
