"""A model, a loss and data, looked at and brought together before anything is computed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from matfree_torch.distributed.collectives import Communicator
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Normalizer
from matfree_torch.objective.fsdp import FullySharded, Unsharded, is_fully_sharded
from matfree_torch.objective.objective import Objective


def build_objective(
    model: nn.Module,
    loss: Any,
    data: Any,
    normalizer: Normalizer | None,
    *,
    ordered: bool = False,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
    differences: bool = False,
) -> tuple[nn.Module, Objective]:
    """A model and the loss over its data, after looking at what would spoil products."""
    if isinstance(model, DistributedDataParallel) and process_group is None:
        warnings.warn(
            "the model is wrapped by DistributedDataParallel, and the curvature is that of this "
            "process's own data: pass process_group= for the data of all, or model.module.",
            UserWarning,
            stacklevel=3,
        )
    model = _unwrapped(model)
    sharding: Unsharded | FullySharded | None = None
    if is_fully_sharded(model):
        _require_no_group(process_group)
        sharding = FullySharded(model) if differences else Unsharded(model)
        model = sharding.module
    isolation.refuse_random_layers(model)
    ordered = ordered or isolation.layer_with_batch_statistics(model) is not None
    communicator = None if process_group is None else Communicator(process_group, _device(model))
    objective = Objective(
        model,
        loss,
        data,
        normalizer,
        ordered=ordered,
        allow_tf32=allow_tf32,
        communicator=communicator,
        sharding=sharding,
    )
    if not objective.batches.single or communicator is not None:
        isolation.warn_of_batch_statistics(model)
    return model, objective


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module itself: one wrapped or compiled cannot be differentiated twice."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    inner = getattr(inner, "_orig_mod", inner)
    assert isinstance(inner, nn.Module)
    return inner if inner is model else _unwrapped(inner)


def _require_no_group(process_group: ProcessGroup | None) -> None:
    if process_group is not None:
        raise ValueError(
            "the processes that fully_shard cut a model up over share out its data; leave "
            "process_group= out."
        )


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
