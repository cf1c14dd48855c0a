"""DTensors, torch's sharded tensors: local shards, full tensors and their double backward.

``torch.distributed.tensor`` takes more than a second to import. A DTensor can only exist if the
module has been imported, so this module looks it up in ``sys.modules`` and never imports it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from matfree_torch.distributed.collectives import Communicator

Mesh: TypeAlias = Any
"""A ``torch.distributed.device_mesh.DeviceMesh``."""


def is_dtensor(x: Any) -> bool:
    """Whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_tensor(x: Tensor) -> Tensor:
    """The local shard of a DTensor; any other tensor is returned as it is."""
    local: Tensor = x.to_local() if is_dtensor(x) else x  # type: ignore[attr-defined]
    return local


def full_tensor(x: Tensor) -> Tensor:
    """The full tensor of a DTensor, a collective call; any other tensor is returned as it is."""
    full: Tensor = x.full_tensor() if is_dtensor(x) else x  # type: ignore[attr-defined]
    return full


def shard_like(x: Tensor, p: Tensor) -> Tensor:
    """The local shard of x with the mesh and the placements of p."""
    if not is_dtensor(p):
        return full_tensor(x)
    source, target = _dtensor(x), _dtensor(p)
    return local_tensor(source.redistribute(target.device_mesh, target.placements))


def dtensor_like(local: Tensor, p: Tensor) -> Tensor:
    """The DTensor with the mesh and the placements of p whose local shard is ``local``."""
    if not is_dtensor(p):
        return local
    like = _dtensor(p)
    x: Tensor = type(like).from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return x


def mesh_communicator(tensors: Iterable[Tensor]) -> Communicator | None:
    """The processes of the mesh over which tensors are sharded; None if none is a DTensor.

    This is a collective call.

    Raises
    ------
    ValueError
        The tensors are sharded over several meshes.
    """
    dtensors = [_dtensor(x) for x in tensors if is_dtensor(x)]
    meshes = {x.device_mesh for x in dtensors}
    if not meshes:
        return None
    if len(meshes) > 1:
        raise ValueError(
            f"the parameters are sharded over several meshes, {sorted(map(str, meshes))}; shard "
            "all of them over one mesh."
        )
    (mesh,) = meshes
    if mesh.ndim == 1:
        group = mesh.get_group()
    elif mesh.size() == dist.get_world_size():
        group = dist.group.WORLD
    else:
        group = mesh._flatten().get_group()
    return Communicator(group, local_tensor(dtensors[0]).device)


def require_disjoint(mesh: Communicator | None, data: Communicator | None) -> None:
    """Raise ValueError if processes that need the same batch are to have different data.

    Parameters
    ----------
    mesh : Communicator or None
        The processes over which parameters are sharded; they compute each batch together.
    data : Communicator or None
        The processes among which the data are divided.
    """
    if mesh is None or data is None:
        return
    ranks = [set(dist.get_process_group_ranks(communicator.group)) for communicator in (mesh, data)]
    if len(set.intersection(*ranks)) > 1:
        raise ValueError(
            "process_group= contains several processes of the mesh over which the parameters are "
            "sharded, and these need the same data; omit it, or pass the processes that hold the "
            'same shards and different data: mesh["dp"].get_group() of a mesh with dimensions '
            '"dp" and "tp".'
        )


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """A context in which ``DTensor.from_local`` can be differentiated twice.

    Torch returns the gradient of ``DTensor.from_local`` without a graph whenever the gradient has
    to be reduced or redistributed, as it has for the input of every column-wise parallel layer.
    Torch 2.13 then silently drops terms of the second derivative, which are half of the Hessian of
    a small network. In this context, the gradient is composed of operations that torch can
    differentiate.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        yield
        return
    kind = module.DTensor
    attribute, original = kind.__dict__["from_local"], kind.from_local

    def from_local(
        local: Tensor,
        device_mesh: Mesh = None,
        placements: Any = None,
        *,
        grad_placements: Any = None,
        **options: Any,
    ) -> Any:
        if not (torch.is_grad_enabled() and local.requires_grad):
            options["grad_placements"] = grad_placements
            return original(local, device_mesh, placements, **options)
        apply: Any = _FromLocal.apply
        return apply(local, (original, device_mesh, placements, options), grad_placements)

    kind.from_local = staticmethod(from_local)
    try:
        yield
    finally:
        kind.from_local = attribute


class _FromLocal(torch.autograd.Function):
    """``DTensor.from_local`` with a differentiable gradient."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, call: Any, grad_placements: Any) -> Any:
        original, mesh, placements, options = call
        x = original(local.detach(), mesh, placements, **options)
        ctx.mesh = x.device_mesh
        ctx.placements = grad_placements or _gradient_placements(x.placements)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient.redistribute(ctx.mesh, ctx.placements).to_local(), None, None


def _gradient_placements(placements: Iterable[Any]) -> tuple[Any, ...]:
    """The placements of the gradient of a DTensor with these placements.

    They are the same, except that the gradient of a partial sum is replicated: every process
    contributes its summand with coefficient 1.
    """
    replicate = sys.modules["torch.distributed.tensor"].Replicate()
    return tuple(replicate if place.is_partial() else place for place in placements)


def _dtensor(x: Tensor) -> Any:
    """The same tensor, typed so that the attributes of a DTensor can be read."""
    return x
