"""Checksums of a model and its batches, which must agree before processes add their results."""

from __future__ import annotations

from torch import nn

from matfree_torch.distributed.checksums import Checksum, checksum_of_tensors
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import is_dtensor
from matfree_torch.objective.batches import CHECKSUM_RTOL, Batch, checksum_of_batch

_REMEDY_BATCHES = "all processes of the mesh over which parameters are sharded need the same data"
_REMEDY_UNSHARDED = "copy those of process 0 to the others with torch.distributed.broadcast"


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
