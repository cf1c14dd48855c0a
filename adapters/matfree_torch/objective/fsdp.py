"""Gradients of a model that ``fully_shard`` has cut up, by its own forward and backward."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch.autograd.graph_memory import available_memory, readable
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.dtensors import full_tensor, is_dtensor, mesh_communicator
from matfree_torch.objective import isolation

LIBRARY = "torch.distributed.fsdp"


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model, or to a part of it.

    Raises
    ------
    OperatorError
        It is wrapped by the older FullyShardedDataParallel.
    """
    library = sys.modules.get(LIBRARY)
    if library is None:
        return False
    if any(isinstance(module, library.FullyShardedDataParallel) for module in model.modules()):
        raise OperatorError(
            "the model is wrapped by FullyShardedDataParallel, whose flattened parameters cannot "
            "be told apart; shard it by torch.distributed.fsdp.fully_shard, or pass the model "
            "before it was wrapped."
        )
    return bool(sharded_modules(model))


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was applied to."""
    kind = sys.modules[LIBRARY].FSDPModule
    return [module for module in model.modules() if isinstance(module, kind)]


@contextmanager
def resharded(model: nn.Module) -> Iterator[None]:
    """A model with its own parameters, also where a forward pass has left some gathered."""
    left = []
    for module in sharded_modules(model):
        before = list(map(id, module.parameters()))
        module.reshard()
        if before != list(map(id, module.parameters())):
            left.append(module)
    try:
        yield
    finally:
        for module in sharded_modules(model):
            module.reshard()
        for module in left:
            module.unshard()


def holders(tensors: Sequence[Tensor]) -> Communicator:
    """The processes that ``fully_shard`` cut parameters up over, each with data of its own.

    Raises
    ------
    OperatorError
        They are cut up for something else, too.
    """
    for p in tensors:
        placements = p.placements if is_dtensor(p) else ()  # type: ignore[attr-defined]
        replicated, last = placements[:-1], placements[-1:]
        if any(place.is_shard() for place in replicated) or not all(
            place.is_shard() for place in last
        ):
            raise OperatorError(
                f"a parameter is cut up as {placements}, by fully_shard and by something else; use "
                "tensor parallelism alone, with process_group= for the data, or fully_shard alone."
            )
    communicator = mesh_communicator(tensors)
    assert communicator is not None  # fully_shard leaves nothing whole
    return communicator


@final
class FullySharded:
    """A model whose gradients are added up by its own backward pass.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        with resharded(model):
            self.tensors: list[Tensor] = list(model.parameters())
        self.communicator = holders(self.tensors)

    @contextmanager
    def around(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """The model in another context, with nothing gathered before and after."""
        with resharded(self.module), context:
            yield

    def gradients(
        self, value: Tensor, tensors: Sequence[Tensor], weight: float
    ) -> tuple[Tensor, ...]:
        """The gradients of the sum over all processes of weight times value, over this weight.

        The backward pass leaves the mean over the processes in ``grad``.
        """
        kept = [p.grad for p in self.tensors]
        try:
            for p in self.tensors:
                p.grad = None
            torch.autograd.backward(weight * value)
            return tuple(self._found(p) / weight for p in tensors)
        finally:
            for p, gradient in zip(self.tensors, kept, strict=True):
                p.grad = gradient

    def _found(self, p: Tensor) -> Tensor:
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        if is_dtensor(p):
            return gradient * self.communicator.size
        return self.communicator.all_reduce(gradient)

    def require_same_number(self, batches: Callable[[], int]) -> None:
        """Refuse data of which processes have other numbers of batches: they would wait forever."""
        counts = self.communicator.all_gather_object(batches)
        if len(set(counts)) > 1:
            raise ValueError(
                f"fully_shard needs as many batches in all processes: got {counts}; take a sampler "
                "that gives each process as many, or strategy='auto' if a twin fits."
            )


_COPIES = 3  # the parameters, a vector and its product


_STATE = "__composable_api_state_key"  # where torch keeps what fully_shard did to a module


@final
class Unsharded:
    """The twin of a model that ``fully_shard`` has cut up; the model is left as it was found.

    Parameters
    ----------
    model : nn.Module
        All processes of its mesh make the twin together.

    Raises
    ------
    MemoryError
        There is no room for whole parameters, a vector and a product.
    OperatorError
        It is cut up for something else, too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        with resharded(model):
            tensors: list[Tensor] = list(model.parameters())
            self.communicator = holders(tensors)
            self._require_room(tensors)
            pairs = [(p, _gathered(p)) for p in tensors]
            self.module = _copied(model, pairs)
        self._pairs = [(p, twin) for p, twin in pairs if is_dtensor(p)]
        self._seen = self._state()

    def follow(self) -> None:
        """Gather the parameters anew if they changed in any process."""
        for module, twin in zip(self._model.modules(), self.module.modules(), strict=True):
            twin.training = module.training
        now = self._state()
        changed = self.communicator.all_gather_numbers([float(now != self._seen)])
        if any(flag for (flag,) in changed):
            with torch.no_grad():
                for p, entire in self._pairs:
                    entire.copy_(full_tensor(p.detach()))
            self._seen = now

    def _state(self) -> list[tuple[int, int]]:
        return [isolation.version_counter(p) for p, _ in self._pairs]

    def _require_room(self, tensors: list[Tensor]) -> None:
        size = sum(p.numel() * p.element_size() for p in tensors)
        free = available_memory(self.communicator.device)
        share = None if free is None else free // self.communicator.num_sharing_memory
        shares = [
            room for room in self.communicator.all_gather_object(lambda: share) if room is not None
        ]
        if shares and _COPIES * size > min(shares):
            raise MemoryError(
                f"the parameters take {readable(size)} when they are whole, with a vector and its "
                f"product {readable(_COPIES * size)}, and a process has {readable(min(shares))} on "
                f"{self.communicator.device}. Give each process more memory; or cut the model up "
                "by tensor parallelism, where no parameter is ever whole; or take "
                "strategy='finite-difference', which uses fully_shard's own passes and is right "
                "to about eps^(2/3) for a smooth network."
            )


def _copied(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """The modules of a model as they were before ``fully_shard``, with other parameters.

    Buffers are shared with the model.
    """
    memo: dict[int, Any] = {id(p): twin for p, twin in pairs}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    sharded = sharded_modules(model)
    for module in sharded:
        kind = next(
            base for base in type(module).__mro__ if not base.__module__.startswith(LIBRARY)
        )
        memo[id(module)] = object.__new__(kind)
    for module in sharded:
        for name, value in vars(module).items():
            if not name.startswith((_STATE, "_fsdp", "_is_fsdp")):
                memo[id(module)].__dict__[name] = copy.deepcopy(_without_hooks(name, value), memo)
    twin: nn.Module = copy.deepcopy(model, memo)
    return twin


def _without_hooks(name: str, value: Any) -> Any:
    """A module's hooks, but for those that gather and free parameters."""
    if not name.endswith("_hooks") or not value:
        return value
    theirs = [
        key
        for key, hook in (value or {}).items()
        if str(getattr(hook, "__module__", "")).startswith(LIBRARY)
    ]
    return (
        type(value)((key, hook) for key, hook in value.items() if key not in theirs)
        if theirs
        else value
    )


def _gathered(p: Tensor) -> Tensor:
    return nn.Parameter(full_tensor(p.detach()).clone(), p.requires_grad)
