"""A module like one that ``fully_shard`` has cut up, with whole parameters.

Torch's FSDP2 keeps a part of every parameter in each process, and gathers what a layer needs
while it runs, forwards and backwards. What it gathers is freed again, and the gradients that it
leaves behind have no graph: nothing of it can be differentiated twice. So the curvature is that
of a twin, on which all processes work with their own data.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree_torch import guard
from matfree_torch.cut import is_cut, whole
from matfree_torch.fullysharded import LIBRARY, holders, resharded, sharded_modules
from matfree_torch.memory import available, readable

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
            self.processes = holders(tensors)
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
                for p, entire in self._pairs:
                    entire.copy_(whole(p.detach()))
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
                f"{self.processes.device}. Give each process more memory; or cut the model up by "
                "tensor parallelism, where no parameter is ever whole; or take "
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
    return nn.Parameter(whole(p.detach()).clone(), p.requires_grad)
