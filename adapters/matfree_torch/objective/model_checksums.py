"""Checksums of a model and its batches, which must agree before processes add their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from matfree_torch.data.reduction import Reduction
from matfree_torch.data.weights import same_divisors
from matfree_torch.distributed.checksums import Checksum, checksum_of_tensors
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import is_dtensor
from matfree_torch.objective.batches import CHECKSUM_RTOL, Batch, Batches, checksum_of_batch
from matfree_torch.objective.fsdp import FullySharded, Unsharded

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


def require_same_divisors(
    communicator: Communicator,
    batches: Batches,
    sharded: FullySharded | Unsharded | None,
    observe: Callable[[Batch], Reduction],
) -> None:
    """Raise ValueError if the loss divides by other multiples of samples in other processes.

    Parameters
    ----------
    communicator : Communicator
        The processes among which the data are divided; all of them call this.
    batches : Batches
    sharded : FullySharded or Unsharded, optional
        The owner of a sharded model. If every forward pass is a collective call, what the loss
        divides by is observed now for all batches, because later passes cannot do it.
    observe : function
        From a batch to the reduction of its loss.
    """
    observed = batches.averaged and batches.weights.are_observed
    if isinstance(sharded, FullySharded):
        sharded.require_same_number(lambda: batches.count()[1])
        if all(communicator.all_gather_object(lambda: observed)):
            for batch in batches.unweighted():
                batches.weights.record(batch, observe(batch))
        # Batches without a weight are not evaluated.
        sharded.require_same_number(lambda: sum(1 for _ in batches))

    def of_first_batch() -> list[Any] | None:
        if observed:
            next(iter(batches), None)
        return batches.weights.divisors_per_sample if observed else None

    found = communicator.all_gather_object(of_first_batch)
    known = [(rank, numbers) for rank, numbers in enumerate(found) if numbers is not None]
    for rank, numbers in known[1:]:
        if not same_divisors(numbers, known[0][1]):
            raise ValueError(
                f"it is not known what the loss divides its sum by, and processes {known[0][0]} "
                f"and {rank} may divide by other multiples of the numbers of samples: "
                f"{known[0][1]} and {numbers}. Pass normalizer=, such as normalizer=lambda batch: "
                "len(batch[1]) for a mean over samples, or batch[1].numel() for a mean over all "
                "targets."
            )
