"""A check that two evaluations of a loss give the same value.

An evaluation restores buffers, attributes of modules and the global random generators. What
remains, such as counters outside of modules or random generators of other libraries, makes two
evaluations differ, and then no two matvecs are those of one matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch.data.nested import floating_tensors_in
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective

_NUM_EPS = 100  # multiples of eps; kernels that add atomically round differently in every call


def loss_of_batch(objective: Objective, batch: Batch) -> Tensor:
    """The loss of a batch at the present weights, without a graph."""
    with objective.isolated():
        objective.finite_value(objective.outputs(batch), batch.targets)
    assert objective.last_value is not None
    return objective.last_value


def differ(before: Tensor, after: Tensor) -> bool:
    """Whether two values differ by more than rounding."""
    limit = _NUM_EPS * torch.finfo(before.dtype).eps
    return bool((after.detach() - before).abs() > limit * before.abs())


def require_reproducible(objective: Objective, batch: Batch, before: Tensor, after: Tensor) -> None:
    """Raise OperatorError, naming the module, if two evaluations of a batch differ."""
    if not differ(before, after):
        return
    module = _irreproducible_module(objective, batch)
    where = "the loss, or a function outside of modules," if module is None else module
    raise OperatorError(
        f"two evaluations of the loss at the same weights are {float(before):.8g} and "
        f"{float(after):.8g}: {where} keeps a state between calls, or draws random numbers from a "
        "generator of its own, and neither can be restored; make it a buffer or an attribute of "
        "the module, or reset it in every forward pass."
    )


def _irreproducible_module(objective: Objective, batch: Batch) -> str | None:
    """The first module, innermost first, whose outputs differ between two evaluations."""
    first, second = (_recorded_outputs(objective, batch) for _ in range(2))
    for (name, x), (_, y) in zip(first, second, strict=False):
        if x != y:
            return name
    return None


def _recorded_outputs(objective: Objective, batch: Batch) -> list[tuple[str, list[float]]]:
    """The sums of the outputs of every call of a module, in the order in which calls end."""
    records: list[tuple[str, list[float]]] = []
    names = {module: name for name, module in objective.state.named_modules()}

    def record(module: nn.Module, args: Any, outputs: Any) -> None:
        sums = [float(x.detach().double().sum()) for x in floating_tensors_in(outputs)]
        records.append((f"{type(module).__name__} {names[module]!r}", sums))

    with objective.isolated():
        handles = [module.register_forward_hook(record) for module in names]
        try:
            objective.value(objective.outputs(batch), batch.targets)
        finally:
            for handle in handles:
                handle.remove()
    return records
