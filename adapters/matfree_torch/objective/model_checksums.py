"""Checksums of a model and its batches, which must agree before processes add their results."""

from __future__ import annotations

from typing import Any, final

from torch import nn

from matfree_torch.distributed.checksums import Checksum, checksum_of_tensors
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import is_dtensor, local_tensor
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import CHECKSUM_RTOL, Batch, checksum_of_batch

_REMEDY_WEIGHTS = "load the same weights in all processes"
_REMEDY_BUFFERS = (
    "each process updates its own running statistics: copy those of one process to the others with "
    "torch.distributed.broadcast"
)
_REMEDY_BATCHES = "all processes of the mesh over which parameters are sharded need the same data"
_REMEDY_UNSHARDED = "copy those of process 0 to the others with torch.distributed.broadcast"


@final
class ModelChecksums:
    """The checksums of a model's weights and buffers, recomputed when the model changes.

    Parameters
    ----------
    model : nn.Module
    sharded : bool
        Whether the processes hold different shards of the same parameters, so that the shards
        must not be compared.
    """

    def __init__(self, model: nn.Module, *, sharded: bool) -> None:
        self._model, self._sharded = model, sharded
        self._versions: tuple[Any, ...] | None = None
        self._checksums: tuple[Checksum, ...] = ()

    def current(self) -> tuple[Checksum, ...]:
        """The checksums of the model as it is now."""
        versions = isolation.version_counters(self._model)
        if versions != self._versions:
            weights = [
                local_tensor(p)
                for p in self._model.parameters()
                if not (self._sharded and is_dtensor(p))
            ]
            buffers = list(map(local_tensor, self._model.buffers()))
            self._versions = versions
            self._checksums = (
                checksum_of_tensors("weights", _REMEDY_WEIGHTS, weights),
                checksum_of_tensors("buffers", _REMEDY_BUFFERS, buffers),
            )
        return self._checksums


def require_same_batch(mesh: Communicator, model: nn.Module, batch: Batch) -> None:
    """Raise OperatorError if processes that compute a batch together have different batches.

    The weights and buffers that are not sharded are compared as well.

    Parameters
    ----------
    mesh : Communicator
        The processes over which parameters are sharded; all of them call this.
    """
    value, size = batch.checksum or checksum_of_batch((batch.inputs, batch.targets))
    tensors = *model.parameters(), *model.buffers()
    unsharded = [x for x in tensors if not is_dtensor(x)]
    mesh.require_same(
        Checksum("batches", _REMEDY_BATCHES, (value, size), CHECKSUM_RTOL * size),
        checksum_of_tensors("unsharded weights or buffers", _REMEDY_UNSHARDED, unsharded),
    )
