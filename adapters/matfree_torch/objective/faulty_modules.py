"""Finding the module whose second derivative torch does not have, or has wrong."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch.objective.objective import Objective

_REFUSALS = re.compile(
    r"is not implemented|once_differentiable|double backward|second.order|differentiate twice"
)
_OPERATION = re.compile(r"derivative for '?(?:aten::)?([\w.:]+)'? is not implemented")
_LOOSEST = 0.05  # wrong derivatives leave 7 % and more; bfloat16 alone leaves 0.3 %
_WRONG = 1e-6  # of a module by itself, in double precision


def symmetry_limit(eps: float) -> float:
    """The asymmetry that rounding explains, relative to ||A w|| for a random sign vector w."""
    return min(10 * math.sqrt(eps), _LOOSEST)


@contextlib.contextmanager
def explain_missing_derivatives(objective: Objective) -> Iterator[None]:
    """Turn torch's refusal to differentiate twice into an error that names the culprit."""
    try:
        yield
    except RuntimeError as cause:
        if not _REFUSALS.search(str(cause)):
            raise
        found = _faulty_module(objective)
        where = "in the loss, or in a function that no module holds" if found is None else found[0]
        operation = _OPERATION.search(str(cause))
        what = f"of {operation[1]}" if operation else f"of an operation ({str(cause)[:120]})"
        raise OperatorError(
            f"torch has no second derivative {what}, {where}; write it from elementary operations "
            "(or, for a compiled module, pass the one it was compiled from)."
        ) from cause


def report_asymmetry(objective: Objective, defect: float) -> None:
    """Raise OperatorError naming the module, or the loss, that makes an operator asymmetric.

    Where neither is wrong by itself it is rounding, of a curvature that is tiny beside the
    terms it is made of: that is a warning.
    """
    found = _faulty_module(objective) or _faulty_loss(objective)
    measured = (
        f"|u^T A w - w^T A u| is {defect:.1e} of ||A w|| for random signs u and w, where second "
        "derivatives are symmetric"
    )
    if found is not None:
        raise OperatorError(
            f"torch differentiates twice wrongly {found[0]} ({found[1]}): {measured}. Write it "
            "from elementary operations, or correct its backward."
        )
    warnings.warn(
        f"{measured}; every module and the loss are right by themselves in double precision, so "
        "this looks like rounding of a curvature that is nearly zero: use double precision, or "
        "look at a loss that is not yet so small.",
        UserWarning,
        stacklevel=10,
    )


def _faulty_module(objective: Objective) -> tuple[str, str] | None:
    """The innermost module whose second derivative is missing or wrong, and what is wrong."""
    calls = _recorded_calls(objective)
    for name, module in reversed(list(objective.model.named_modules())):  # children first
        if module in calls:
            with contextlib.suppress(copy.Error, TypeError, ValueError):
                complaint = _complaint(objective, module, *calls[module])
                if complaint is not None:
                    where = f"layer {name!r}" if name else "(the model itself)"
                    return f"in {type(module).__name__} {where}", complaint
    return None


def _faulty_loss(objective: Objective) -> tuple[str, str] | None:
    """The same for the loss, as a function of the outputs near what the model makes of a batch."""
    with objective.isolated():
        batch = next(iter(objective.batches), None)
        if batch is None:
            return None  # other processes hold the data
        outputs = objective.outputs(batch)
        if objective.loss is None or not isinstance(outputs, Tensor):
            return None  # the model itself computes it
        noise = _noise()
        z = outputs.detach().to(torch.float64)
        z = (z + noise(z)).requires_grad_()
        value = objective.value(z, _doubled(batch.targets))
        (gradient,) = torch.autograd.grad(value, z, create_graph=True, materialize_grads=True)
        defect = _asymmetry([gradient], [z], noise)
    return ("in the loss", f"asymmetry {defect:.1e} by itself") if defect > _WRONG else None


def _recorded_calls(objective: Objective) -> dict[nn.Module, tuple[Any, Any]]:
    """The arguments of every module's first call."""
    calls: dict[nn.Module, tuple[Any, Any]] = {}

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.setdefault(module, (_doubled(args), _doubled(kwargs)))

    handles = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in objective.model.modules()
    ]
    try:
        with objective.isolated(), contextlib.suppress(RuntimeError):
            for batch in itertools.islice(objective.batches, 1):
                objective.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _complaint(objective: Objective, module: nn.Module, args: Any, kwargs: Any) -> str | None:
    """What is wrong with a module's second derivative, from a double precision copy of it."""
    try:
        twin = copy.deepcopy(module).to(torch.float64)
    except RuntimeError:  # it holds tensors that cannot be copied; others are looked at
        return None
    tensors: list[Tensor] = [p for p in twin.parameters() if p.is_floating_point()]
    tensors += [x.requires_grad_() for x in _floating((args, kwargs))]
    if not tensors:
        return None
    args, kwargs = _unleafed(args), _unleafed(kwargs)  # some modules work in place
    noise = _noise()
    try:
        with objective.isolated():
            outputs = list(_floating(twin(*args, **kwargs)))
            terms = [(noise(y) * (y + y**2)).sum() for y in outputs if y.requires_grad]
            value = torch.stack(terms).sum()  # not linear, so that every backward is needed twice
            gradients = torch.autograd.grad(
                value, tensors, create_graph=True, allow_unused=True, materialize_grads=True
            )
            defect = _asymmetry(gradients, tensors, noise)
    except RuntimeError as refusal:
        return str(refusal)[:120] if _REFUSALS.search(str(refusal)) else None
    return f"asymmetry {defect:.1e} by itself" if defect > _WRONG else None


def _noise() -> Callable[[Tensor], Tensor]:
    """Gaussian numbers of a tensor's shape, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _asymmetry(gradients: Any, tensors: list[Tensor], noise: Any) -> float:
    u, w = [noise(x) for x in tensors], [noise(x) for x in tensors]
    Hu, Hw = (_second(gradients, tensors, v) for v in (u, w))
    gap = abs(_inner(u, Hw) - _inner(w, Hu))
    size = max(_inner(Hu, Hu), _inner(Hw, Hw)) ** 0.5
    return gap / size if size > 0 else 0.0


def _second(gradients: Any, tensors: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    curved = [(g, x) for g, x in zip(gradients, v, strict=True) if g.requires_grad]
    if not curved:
        return [torch.zeros_like(x) for x in tensors]
    return list(
        torch.autograd.grad(
            [g for g, _ in curved],
            tensors,
            [x for _, x in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _inner(a: list[Tensor], b: list[Tensor]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def _doubled(x: Any) -> Any:
    """A copy of arguments, floating point ones in double precision."""
    return _mapped(x, lambda t: t.detach().clone().to(_double_or_same(t)))


def _unleafed(x: Any) -> Any:
    return _mapped(x, lambda t: t * 1 if t.requires_grad else t)


def _double_or_same(t: Tensor) -> torch.dtype:
    return torch.float64 if t.is_floating_point() else t.dtype


def _mapped(x: Any, function: Any) -> Any:
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, tuple | list):
        return type(x)(_mapped(item, function) for item in x)
    if isinstance(x, dict):
        return {name: _mapped(item, function) for name, item in x.items()}
    return x


def _floating(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor) and x.is_floating_point():
        yield x
    elif isinstance(x, tuple | list | dict):
        for item in x.values() if isinstance(x, dict) else x:
            yield from _floating(item)
