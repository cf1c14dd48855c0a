"""Models sharded by ``fully_shard``, whose double backward torch does not support.

There are two methods of computing their curvature. :class:`Unsharded` is a copy of the model with
full parameters, which is differentiated like any other model. If it does not fit in memory,
:class:`FullySharded` computes gradients with the forward and backward passes of the sharded model,
and the curvature is a finite difference of gradients.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree.results.record import readable
from matfree_torch.autograd.graph_memory import available_memory
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import (
    full_tensor,
    is_dtensor,
    local_tensor,
    mesh_communicator,
)
from matfree_torch.distributed.tensor_hash import hash_of
from matfree_torch.objective import isolation

_LIBRARY = "torch.distributed.fsdp"
_STATE = "__composable_api_state_key"  # the attribute in which torch keeps the state of fully_shard
_PARAMETER_COPIES = 3  # the parameters, a vector and its matvec


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model or to any of its modules.

    Raises
    ------
    OperatorError
        The model is wrapped by the older FullyShardedDataParallel.
    """
    library = sys.modules.get(_LIBRARY)
    if library is None:
        return False
    if any(isinstance(module, library.FullyShardedDataParallel) for module in model.modules()):
        raise OperatorError(
            "the model is wrapped by FullyShardedDataParallel, which flattens parameters into one "
            "tensor; shard it with torch.distributed.fsdp.fully_shard, or pass the model without "
            "the wrapper."
        )
    return bool(sharded_modules(model))


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was applied to."""
    kind = sys.modules[_LIBRARY].FSDPModule
    return [module for module in model.modules() if isinstance(module, kind)]


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """A context in which all parameters are sharded, even if a forward pass left some gathered."""
    gathered = []
    for module in sharded_modules(model):
        before = list(map(id, module.parameters()))
        module.reshard()
        if before != list(map(id, module.parameters())):
            gathered.append(module)
    try:
        yield
    finally:
        for module in sharded_modules(model):
            module.reshard()
        for module in gathered:
            module.unshard()


def fsdp_communicator(tensors: Sequence[Tensor]) -> Communicator:
    """The processes over which ``fully_shard`` has sharded parameters, each with its own data.

    Raises
    ------
    OperatorError
        The parameters are also sharded in another way, such as by tensor parallelism.
    """
    for p in tensors:
        placements = p.placements if is_dtensor(p) else ()  # type: ignore[attr-defined]
        # fully_shard shards over the inner dimension of its mesh and replicates over the outer one.
        outer, inner = placements[:-1], placements[-1:]
        if any(place.is_shard() for place in outer) or not all(place.is_shard() for place in inner):
            raise OperatorError(
                f"a parameter has the placements {placements}: it is sharded by fully_shard and in "
                "another way; use tensor parallelism alone, with process_group= for the data, or "
                "fully_shard alone."
            )
    communicator = mesh_communicator(tensors)
    assert communicator is not None  # fully_shard turns all parameters into DTensors
    return communicator


@final
class FullySharded:
    """A model sharded by ``fully_shard``, evaluated without gathering a full copy.

    Its backward pass reduces gradients over all processes.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        with resharded(model):
            self.tensors: list[Tensor] = list(model.parameters())
        self.communicator = fsdp_communicator(self.tensors)

    @contextmanager
    def around(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """``context``, entered with sharded parameters, which are sharded again when it is left."""
        with resharded(self.module), context:
            yield

    def gradients(
        self, value: Tensor, tensors: Sequence[Tensor], weight: float
    ) -> tuple[Tensor, ...]:
        """The gradients of the weighted sum over all processes, divided by this process's weight.

        The caller multiplies the gradients of every batch by its weight. For ``fully_shard`` the
        weights must enter before the backward pass, which sums over processes; the division
        cancels the factor of the caller.

        Parameters
        ----------
        value : Tensor
            The loss of this process's batch.
        tensors : sequence of Tensor
            Parameters of the model.
        weight : float
            The weight of this process's batch.
        """
        saved = [p.grad for p in self.tensors]
        try:
            for p in self.tensors:
                p.grad = None
            torch.autograd.backward(weight * value)
            return tuple(self._summed_gradient(p) / weight for p in tensors)
        finally:
            for p, gradient in zip(self.tensors, saved, strict=True):
                p.grad = gradient

    def _summed_gradient(self, p: Tensor) -> Tensor:
        """The gradient summed over processes; the backward pass leaves their mean in ``grad``."""
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        if is_dtensor(p):
            return gradient * self.communicator.size
        return self.communicator.all_reduce(gradient)

    def require_same_number(self, count_batches: Callable[[], int]) -> None:
        """Raise ValueError if processes have different numbers of batches.

        Every forward pass is a collective call, so that a process with more batches would hang.
        """
        counts = self.communicator.all_gather_object(count_batches)
        if len(set(counts)) > 1:
            raise ValueError(
                f"fully_shard needs the same number of batches in all processes: got {counts}; "
                "use a sampler that gives each process as many, or strategy='auto' if full "
                "parameters fit in memory."
            )


@final
class Unsharded:
    """A copy, with full parameters, of a model sharded by ``fully_shard``.

    Creating it is a collective call. The model itself is not modified.

    Parameters
    ----------
    model : nn.Module

    Raises
    ------
    MemoryError
        The full parameters, a vector and its matvec do not fit in memory.
    OperatorError
        The parameters are also sharded in another way.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        with resharded(model):
            tensors: list[Tensor] = list(model.parameters())
            self.communicator = fsdp_communicator(tensors)
            self._require_memory(tensors)
            pairs = [(p, _gathered(p)) for p in tensors]
            self.module = _copied(model, pairs)
        self._replicas = dict(self.module.named_parameters())
        self._seen = self._state()

    def update(self) -> None:
        """Gather the parameters again if they have changed in any process; a collective call.

        Raises
        ------
        OperatorError
            The model has other modules or parameters than at construction, in any process.
        """
        now = self._state()
        different = now[0] != self._seen[0]
        codes = self.communicator.all_gather_numbers([2.0 * different + (now != self._seen)])
        if any(code > 1 for (code,) in codes):
            raise OperatorError(
                "the modules or parameters of the model sharded by fully_shard are no longer those "
                "that the operator was created for; create the operator again."
            )
        for module, replica in zip(self._model.modules(), self.module.modules(), strict=True):
            replica.training = module.training
        if any(code for (code,) in codes):
            with torch.no_grad():
                for name, p in self._sharded().items():
                    self._replicas[name].copy_(full_tensor(p.detach()))
        self._seen = now

    def _sharded(self) -> dict[str, Tensor]:
        with resharded(self._model):
            return {name: p for name, p in self._model.named_parameters() if is_dtensor(p)}

    def _state(self) -> tuple[Any, ...]:
        """The modules and shapes of the model, and what changes with the values of its shards."""
        sharded = self._sharded()
        names = [name for name, _ in self._model.named_modules()]
        shapes = {name: p.shape for name, p in sharded.items()}
        counters = [(id(p), isolation.version_counter(p)) for p in sharded.values()]
        return (names, shapes), counters, hash_of([local_tensor(p) for p in sharded.values()])

    def _require_memory(self, tensors: list[Tensor]) -> None:
        size = sum(p.numel() * p.element_size() for p in tensors)
        free = available_memory(self.communicator.device)
        share = None if free is None else free // self.communicator.num_sharing_memory
        gathered = self.communicator.all_gather_object(lambda: share)
        shares = [available for available in gathered if available is not None]
        if shares and _PARAMETER_COPIES * size > min(shares):
            raise MemoryError(
                f"the full parameters take {readable(size)}, and with a vector and its matvec "
                f"{readable(_PARAMETER_COPIES * size)}, but each process has "
                f"{readable(min(shares))} available on {self.communicator.device}. Give each "
                "process more memory; or shard the model by tensor parallelism, which never "
                "gathers parameters; or pass strategy='finite-difference', which uses the passes "
                "of fully_shard and has an error of about eps^(2/3) for a smooth network."
            )


def _copied(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy of a model without the hooks of ``fully_shard``, with the parameters in ``pairs``.

    ``fully_shard`` replaces the class of a module by a subclass, registers hooks and adds
    attributes; the copy has none of them. Buffers are shared with the model.

    Parameters
    ----------
    pairs : (parameter of the model, parameter of the copy)
    """
    memo: dict[int, Any] = {id(p): replica for p, replica in pairs}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    sharded = sharded_modules(model)
    for module in sharded:
        kind = next(
            base for base in type(module).__mro__ if not base.__module__.startswith(_LIBRARY)
        )
        memo[id(module)] = object.__new__(kind)
    for module in sharded:
        for name, value in vars(module).items():
            if not name.startswith((_STATE, "_fsdp", "_is_fsdp")):
                memo[id(module)].__dict__[name] = copy.deepcopy(_without_hooks(name, value), memo)
    replica: nn.Module = copy.deepcopy(model, memo)
    return replica


def _without_hooks(name: str, value: Any) -> Any:
    """An attribute of a module, without the hooks that gather and free parameters."""
    if not name.endswith("_hooks") or not value:
        return value
    own = [
        (key, hook)
        for key, hook in value.items()
        if not str(getattr(hook, "__module__", "")).startswith(_LIBRARY)
    ]
    return value if len(own) == len(value) else type(value)(own)


def _gathered(p: Tensor) -> Tensor:
    return nn.Parameter(full_tensor(p.detach()).clone(), p.requires_grad)
