"""How much memory a graph holds, and how much there is."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import local_tensor

if TYPE_CHECKING:
    pass

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_GROUP = Path("/sys/fs/cgroup")  # what a container may use, where this is one


@final
class SavedTensors:
    """The tensors that graphs made inside ``watched`` save for their backward passes.

    Parameters
    ----------
    known : tensors that lie in memory anyway, a model's parameters
    device : where they are
    """

    def __init__(self, known: list[Tensor], device: torch.device) -> None:
        self._known = set(storage_sizes(known))
        self._device, self._limit = device, available_memory(device)
        self._alive: weakref.WeakSet[_Saved] = weakref.WeakSet()
        self._packed = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at every tensor that is saved; MemoryError before they take all that is free."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.unpack):
            yield

    def bytes(self) -> int:
        """What the graphs that are still alive hold: every storage once."""
        found = storage_sizes(saved.tensor for saved in self._alive)
        return sum(size for place, size in found.items() if place not in self._known)

    def _pack(self, x: Tensor) -> _Saved:
        saved = _Saved(x)
        self._alive.add(saved)
        self._packed += sum(storage_sizes([x]).values())
        if self._limit is not None and self._packed > self._limit:  # shared ones counted again
            self._packed = self.bytes()
            if self._packed > self._limit:
                raise MemoryError(
                    f"the gradient's graph of the first batch passes {readable(self._packed)}, all "
                    f"that was free on {self._device}; pass smaller batches, a DataLoader with a "
                    "smaller batch_size for one: the answer is the same."
                )
        return saved


@final
class _Saved:
    """A saved tensor: an object of its own, so that it is known when the graph lets it go."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def unpack(self) -> Tensor:
        return self.tensor


def storage_sizes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Where tensors lie, and how many bytes each place takes; sparse tensors do not tell."""
    parts = [getattr(x, "elem", x) for x in map(local_tensor, tensors)]  # what is still on its way
    dense = [x.untyped_storage() for x in parts if x.layout == torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in dense}


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    found = [size for size in (_machine(), _container()) if size is not None]
    return min(found) if found else None


def readable(size: float) -> str:
    """Bytes in a unit that suits them."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"


def _machine() -> int | None:
    """What the machine has free; pages that only cache files count as free."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        entries = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        return 1024 * (entries["MemAvailable"] + entries["SwapFree"])
    with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS tells the whole only
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _container() -> int | None:
    """What the container may still take, where it has a limit."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        limit = int((_GROUP / "memory.max").read_text(encoding="ascii"))  # "max" is no limit
        used = int((_GROUP / "memory.current").read_text(encoding="ascii"))
        lines = (_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        files = {line.split()[0]: int(line.split()[1]) for line in lines}["inactive_file"]
        return max(0, limit - used + files)
    return None


_SHARE = 16  # of the free memory, what vectors that are whole may take


_COPIES = 4  # of a block while it is multiplied: whole, by vectors, joined again, summed


def columns_at_once(communicator: Communicator, size: int, dtype: torch.dtype) -> int:
    """Vectors that may be whole at a time, as many in every process."""
    free = available_memory(communicator.device)
    vector = _COPIES * size * torch.finfo(dtype).bits // 8
    fit = 1 if free is None else free // (_SHARE * communicator.num_sharing_memory * vector)
    return max(1, min(communicator.all_gather_object(lambda: int(fit))))
