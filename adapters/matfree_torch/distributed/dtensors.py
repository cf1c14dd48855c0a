"""Tensors cut up over processes, torch's DTensors: the part that is here, and the whole.

``torch.distributed.tensor`` takes more than a second to load. A tensor can be cut up only where
somebody has loaded it, so that nothing here loads it by itself.
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
    """What of a tensor lies in this process: the tensor itself, where it is not cut up."""
    local: Tensor = x.to_local() if is_dtensor(x) else x  # type: ignore[attr-defined]
    return local


def full_tensor(x: Tensor) -> Tensor:
    """A tensor with all of its entries; where it is cut up all processes of its mesh call this."""
    entire: Tensor = x.full_tensor() if is_dtensor(x) else x  # type: ignore[attr-defined]
    return entire


def shard_like(x: Tensor, p: Tensor) -> Tensor:
    """What of a tensor lies in this process, once it is cut up as ``p`` is."""
    if not is_dtensor(p):
        return full_tensor(x)
    x_cut, p_cut = _dtensor(x), _dtensor(p)
    return local_tensor(x_cut.redistribute(p_cut.device_mesh, p_cut.placements))


def dtensor_like(local: Tensor, p: Tensor) -> Tensor:
    """The tensor cut up as ``p`` is whose parts the processes hold."""
    if not is_dtensor(p):
        return local
    p_cut = _dtensor(p)
    made: Tensor = type(p_cut).from_local(
        local,
        p_cut.device_mesh,
        p_cut.placements,
        run_check=False,
        shape=p_cut.shape,
        stride=p_cut.stride(),
    )
    return made


def mesh_communicator(tensors: Iterable[Tensor]) -> Communicator | None:
    """The processes that tensors are cut up over; None where none is.

    All of them call this.

    Raises
    ------
    ValueError
        They are cut up over several meshes.
    """
    cut = [_dtensor(x) for x in tensors if is_dtensor(x)]
    meshes = {x.device_mesh for x in cut}
    if not meshes:
        return None
    if len(meshes) > 1:
        raise ValueError(
            f"the parameters are cut up over several meshes, {sorted(map(str, meshes))}; cut all "
            "of them up over one."
        )
    (mesh,) = meshes
    if mesh.ndim == 1:
        group = mesh.get_group()
    elif mesh.size() == dist.get_world_size():
        group = dist.group.WORLD
    else:
        group = mesh._flatten().get_group()
    return Communicator(group, local_tensor(cut[0]).device)


def require_disjoint(together: Communicator | None, apart: Communicator | None) -> None:
    """Refuse processes that compute a batch together where each would have batches of its own."""
    if together is None or apart is None:
        return
    ranks = [
        set(dist.get_process_group_ranks(communicator.group)) for communicator in (together, apart)
    ]
    if len(set.intersection(*ranks)) > 1:
        raise ValueError(
            "process_group= holds several processes of the mesh that parameters are cut up over, "
            "and these need the same data; leave it out, or pass the processes that have the same "
            'parts and other data: mesh["dp"].get_group() of a mesh with dimensions "dp" and "tp".'
        )


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Let what becomes a DTensor in the middle of a model be differentiated twice.

    The gradient of ``DTensor.from_local`` is a tensor without a graph wherever parts of it have
    to be added up or exchanged. Whatever enters a column-wise parallel layer is such a case: torch
    2.13 then drops terms of the second derivative without a word, half of the Hessian of a small
    network. Here it is made of operations that torch can differentiate.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        yield
        return
    kind = module.DTensor
    given, original = kind.__dict__["from_local"], kind.from_local

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
        kind.from_local = given


class _FromLocal(torch.autograd.Function):
    """``DTensor.from_local``, with a gradient that has a graph."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, call: Any, grad_placements: Any) -> Any:
        original, mesh, placements, options = call
        made = original(local.detach(), mesh, placements, **options)
        ctx.mesh = made.device_mesh
        ctx.placements = grad_placements or _added_up(made.placements)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient.redistribute(ctx.mesh, ctx.placements).to_local(), None, None


def _added_up(placements: Iterable[Any]) -> tuple[Any, ...]:
    """Where the gradient of what is placed so has to be: entire, where parts are to be added."""
    entire = sys.modules["torch.distributed.tensor"].Replicate()
    return tuple(entire if place.is_partial() else place for place in placements)


def _dtensor(x: Tensor) -> Any:
    return x
