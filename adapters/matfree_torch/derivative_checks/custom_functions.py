"""The autograd functions, other than torch's own, that a loss is computed with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from matfree_torch.autograd.graph_nodes import graph_nodes
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.entries import is_differentiable

_TRUSTED = "torch.distributed.", "torch.utils.checkpoint", "matfree_torch."
_KINKS = re.compile(
    r"[RP]relu|Relu|Elu|Celu|Hard|Threshold|[Ss]hrink|Max[A-Z0-9P]|Maximum|Min[A-Z0-9]|Minimum|Amax|Amin"
    r"|Abs|Clamp|Topk|Sort|Median|Kthvalue|Round|Floor|Ceil|Trunc|Sign|L1|Huber|Margin|FakeQuant"
)
"""Names of operations whose gradient, or whose second derivative, jumps."""


def kink_in(value: Tensor) -> str | None:
    """The name of an operation behind a tensor whose derivative jumps; None if there is none."""
    names = (type(node).__name__ for node in graph_nodes(value))
    return next((name.partition("Backward")[0] for name in names if _KINKS.search(name)), None)


def has_custom_functions(value: Tensor) -> bool:
    """Whether a tensor depends on the result of an autograd function that is not torch's own."""
    return any(map(_custom_name, graph_nodes(value)))


def used_functions(
    objective: Objective, batch: Batch, *, loss_only: bool = False
) -> dict[nn.Module | None, set[str]]:
    """The names of custom autograd functions by the innermost module that calls them.

    Parameters
    ----------
    objective, batch
    loss_only : bool
        Whether only functions between the outputs and the loss are counted.

    Returns
    -------
    dict
        Functions that the loss calls are under the key None.
    """
    intervals: list[tuple[int, int, nn.Module]] = []
    open_calls: list[int] = []

    def before(module: nn.Module, args: Any) -> None:
        open_calls.append(_current_number())

    def after(module: nn.Module, args: Any, outputs: Any) -> None:
        intervals.append((open_calls.pop(), _current_number(), module))

    modules = modules_with_hooks(objective.model.modules())
    handles = [module.register_forward_pre_hook(before) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules]
    frozen = [p for p in objective.model.parameters() if is_differentiable(p)]
    frozen = [p for p in frozen if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)  # torch's own signature
        with objective.isolated():
            outputs = objective.outputs(batch)
            value = objective.value(outputs, batch.targets)
            nodes = list(graph_nodes(value, output_tensor(outputs) if loss_only else None))
    finally:
        for p in frozen:
            p.requires_grad_(False)
        for handle in handles:
            handle.remove()
    used: dict[nn.Module | None, set[str]] = {}
    for node in nodes:
        name = _custom_name(node)
        if name is not None:
            used.setdefault(_innermost(intervals, node._sequence_nr()), set()).add(name)
    return used


def modules_with_hooks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules that support hooks; scripted ones do not."""
    return [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]


def _custom_name(node: Any) -> str | None:
    """The name of the custom function that created a node of a graph; None for other nodes."""
    name = type(node).__name__
    if name == "CppFunction":  # a function of an extension in C++, or torch's own
        return str(node.name()) if "CppNode" in node.name() else None
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        return None
    function: Any = getattr(node, "_forward_cls", type(node))
    return None if function.__module__.startswith(_TRUSTED) else str(function.__name__)


def _current_number() -> int:
    """The number that torch gives to the next node of a graph; numbers increase with time."""
    node = torch.zeros((), requires_grad=True).clone().grad_fn
    assert node is not None
    return int(node._sequence_nr())


def _innermost(intervals: Iterable[tuple[int, int, nn.Module]], number: int) -> nn.Module | None:
    around = [call for call in intervals if call[0] < number < call[1]]
    return max(around, key=lambda call: call[0])[2] if around else None
