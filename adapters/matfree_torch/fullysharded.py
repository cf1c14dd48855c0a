"""Gradients of a model that ``fully_shard`` has cut up, by its own forward and backward."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch.cut import is_cut, partners
from matfree_torch.processes import Processes

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


def holders(tensors: Sequence[Tensor]) -> Processes:
    """The processes that ``fully_shard`` cut parameters up over, each with data of its own.

    Raises
    ------
    OperatorError
        They are cut up for something else, too.
    """
    for p in tensors:
        placements = p.placements if is_cut(p) else ()  # type: ignore[attr-defined]
        replicated, last = placements[:-1], placements[-1:]
        if any(place.is_shard() for place in replicated) or not all(
            place.is_shard() for place in last
        ):
            raise OperatorError(
                f"a parameter is cut up as {placements}, by fully_shard and by something else; use "
                "tensor parallelism alone, with process_group= for the data, or fully_shard alone."
            )
    processes = partners(tensors)
    assert processes is not None  # fully_shard leaves nothing whole
    return processes


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
        self.processes = holders(self.tensors)

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
        if is_cut(p):
            return gradient * self.processes.size
        return self.processes.sum(gradient)

    def require_same_number(self, batches: Callable[[], int]) -> None:
        """Refuse data of which processes have other numbers of batches: they would wait forever."""
        counts = self.processes.exchange(batches)
        if len(set(counts)) > 1:
            raise ValueError(
                f"fully_shard needs as many batches in all processes: got {counts}; take a sampler "
                "that gives each process as many, or strategy='auto' if a twin fits."
            )
