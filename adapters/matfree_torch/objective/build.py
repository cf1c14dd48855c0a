"""The objective of a model, a loss and data, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from matfree.errors import warn
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.objective.batches import Normalizer
from matfree_torch.objective.fsdp import FullySharded, Unsharded, is_fully_sharded
from matfree_torch.objective.model_calls import FunctionModule
from matfree_torch.objective.objective import Objective


def build_objective(
    model: Any,
    loss: Any,
    data: Any,
    normalizer: Normalizer | None,
    *,
    batch: bool | None = None,
    ordered: bool = False,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
    differences: bool = False,
    params: Any = None,
) -> tuple[nn.Module, Objective]:
    """The unwrapped model, and the loss over its data as a function of the parameters.

    The parameters are those of the public functions, in addition to

    Parameters
    ----------
    ordered : bool
        Whether every pass must show the same batches in the same order.
    differences : bool
        Whether gradients are differenced rather than differentiated, so that a model sharded by
        ``fully_shard`` is evaluated without an unsharded copy.
    params : mapping of names to tensors, optional
        The tensors of a model that is a function of them. For a module it is not used here.

    Raises
    ------
    TypeError
        The model is neither a module nor a function with the mapping of its tensors.
    ValueError
        Parameters of lazy modules are not initialized.
        A layer draws random numbers, or ``process_group`` is given for a model that is sharded by
        ``fully_shard``.

    Warns
    -----
    UserWarning
        The model is wrapped by DistributedDataParallel and ``process_group`` is not given, or a
        layer normalizes over the batch and there are several batches.
    """
    if isinstance(model, DistributedDataParallel) and process_group is None:
        warn(
            "the model is wrapped by DistributedDataParallel, but process_group= is not given, so "
            "that the curvature is that of this process's own data; pass process_group= to include "
            "the data of all processes, or model.module to exclude them.",
            UserWarning,
        )
    model = _unwrapped(_as_module(model, params))
    _require_initialized(model)
    sharding: Unsharded | FullySharded | None = None
    if is_fully_sharded(model):
        _require_no_group(process_group)
        sharding = FullySharded(model) if differences else Unsharded(model)
        model = sharding.module
    communicator = None if process_group is None else Communicator(process_group, _device(model))
    objective = Objective(
        model,
        loss,
        data,
        normalizer,
        batch=batch,
        ordered=ordered,
        allow_tf32=allow_tf32,
        communicator=communicator,
        sharding=sharding,
    )
    return model, objective


def _as_module(model: Any, params: Any) -> nn.Module:
    """The model itself, or a function f(tensors, *inputs) with its tensors as a module."""
    if isinstance(model, nn.Module):
        return model
    if not callable(model) or not isinstance(params, Mapping):
        raise TypeError(
            "model must be an nn.Module, or a function f(tensors, *inputs) with params= the "
            f"mapping of names to tensors that it is called with: got {type(model).__name__}. Pass "
            "the module, or params=dict(module.named_parameters()) with a function that calls "
            "torch.func.functional_call(module, tensors, inputs)."
        )
    return FunctionModule(model, params)


def _require_initialized(model: nn.Module) -> None:
    """Raise ValueError if a lazy module has not seen a batch yet."""
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(x):
            raise ValueError(
                f"{name!r} of the model is not initialized, because a lazy module takes its shape "
                "from the first batch; call model(*inputs) once before."
            )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers and compilation, which cannot be differentiated twice."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    inner = getattr(inner, "_orig_mod", inner)
    assert isinstance(inner, nn.Module)
    return inner if inner is model else _unwrapped(inner)


def _require_no_group(process_group: ProcessGroup | None) -> None:
    if process_group is not None:
        raise ValueError(
            "the processes over which fully_shard has sharded a model also divide its data among "
            "themselves; omit process_group=."
        )


def _device(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
