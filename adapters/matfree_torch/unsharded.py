"""A module like one that ``fully_shard`` has cut up, with whole parameters.

Torch's FSDP2 keeps a part of every parameter in each process, and gathers what a layer needs
while it runs, forwards and backwards. What it gathers is freed again, and the gradients that it
leaves behind have no graph: nothing of it can be differentiated twice. So the curvature is that
of a twin, on which all processes work with their own data.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch import guard
from matfree_torch.cut import is_cut, partners, whole
from matfree_torch.memory import available, readable
from matfree_torch.processes import Processes

_COPIES = 3  # the parameters, a vector and its product
_STATE = "__composable_api_state_key"  # where torch keeps what fully_shard did to a module
_LIBRARY = "torch.distributed.fsdp"


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to a model, or to a part of it.

    Raises
    ------
    OperatorError
        It is wrapped by the older FullyShardedDataParallel.
    """
    library = sys.modules.get(_LIBRARY)
    if library is None:
        return False
    if any(isinstance(module, library.FullyShardedDataParallel) for module in model.modules()):
        raise OperatorError(
            "the model is wrapped by FullyShardedDataParallel, whose flattened parameters cannot "
            "be told apart; shard it by torch.distributed.fsdp.fully_shard, or pass the model "
            "before it was wrapped."
        )
    return any(isinstance(module, library.FSDPModule) for module in model.modules())


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
        with self._sharded():
            tensors: list[Tensor] = list(model.parameters())
            _require_shards_of_data_parallelism(tensors)
            processes = partners(tensors)
            assert processes is not None
            self.processes: Processes = processes
            self._require_room(tensors)
            pairs = [(p, _gathered(p)) for p in tensors]
            self.module = _copied(model, pairs)
            self._pairs = [(p, twin) for p, twin in pairs if is_cut(p)]
            self._seen = self._state()

    def follow(self) -> None:
        """Gather the parameters anew if they changed in any process."""
        for module, twin in zip(self._model.modules(), self.module.modules(), strict=True):
            twin.training = module.training
        now = self._state()
        changed = self.processes.gathered([float(now != self._seen)])
        if any(flag for (flag,) in changed):
            with torch.no_grad():
                for p, twin in self._pairs:
                    twin.copy_(whole(p.detach()))
            self._seen = now

    def _state(self) -> list[tuple[int, int]]:
        return [guard.version(p) for p, _ in self._pairs]

    def _require_room(self, tensors: list[Tensor]) -> None:
        size = sum(p.numel() * p.element_size() for p in tensors)
        free = available(self.processes.device)
        share = None if free is None else free // self.processes.neighbours
        shares = [room for room in self.processes.exchange(lambda: share) if room is not None]
        if shares and _COPIES * size > min(shares):
            raise MemoryError(
                f"the parameters take {readable(size)} when they are whole, with a vector and its "
                f"product {readable(_COPIES * size)}, and a process has {readable(min(shares))} on "
                f"{self.processes.device}: take more memory for each process, a part of the "
                "parameters with params= on a model whose other layers are not sharded, or a model "
                "that is cut up by tensor parallelism, whose parameters are never whole."
            )

    @contextmanager
    def _sharded(self) -> Iterator[None]:
        """The model with the parameters that are its own, also where some were left gathered."""
        left = []
        for module in _sharded_modules(self._model):
            before = list(map(id, module.parameters()))
            module.reshard()
            if before != list(map(id, module.parameters())):
                left.append(module)
        try:
            yield
        finally:
            for module in left:
                module.unshard()


def _copied(model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """The modules of a model as they were before ``fully_shard``, with other parameters.

    Buffers are shared with the model.
    """
    memo: dict[int, Any] = {id(p): twin for p, twin in pairs}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    sharded = _sharded_modules(model)
    for module in sharded:
        kind = next(
            base for base in type(module).__mro__ if not base.__module__.startswith(_LIBRARY)
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
        if str(getattr(hook, "__module__", "")).startswith(_LIBRARY)
    ]
    return (
        type(value)((key, hook) for key, hook in value.items() if key not in theirs)
        if theirs
        else value
    )


def _gathered(p: Tensor) -> Tensor:
    return nn.Parameter(whole(p.detach()).clone(), p.requires_grad)


def _sharded_modules(model: nn.Module) -> list[Any]:
    kind = sys.modules[_LIBRARY].FSDPModule
    return [module for module in model.modules() if isinstance(module, kind)]


def _require_shards_of_data_parallelism(tensors: list[Tensor]) -> None:
    """Every process has data of its own only where nothing but ``fully_shard`` cut them up."""
    for p in tensors:
        placements = p.placements if is_cut(p) else ()  # type: ignore[attr-defined]
        if any(place.is_shard() for place in placements[:-1]) or any(
            not place.is_shard() for place in placements[-1:]
        ):
            raise OperatorError(
                f"a parameter is cut up as {placements}, by fully_shard and by something else; use "
                "tensor parallelism alone, with process_group= for the data, or fully_shard alone."
            )
