"""Diagnosis of modules whose second derivative is missing or wrong in torch.

A Hessian is symmetric, and so is that of each module on its own: for random u and w, u^T H w and
w^T H u differ by more than rounding if the second derivative is wrong. Every module is tested on a
copy in double precision, innermost modules first, so that the error names the module to fix.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree.errors import warn
from matfree_torch.data.nested import floating_tensors_in, map_tensors
from matfree_torch.objective.objective import Objective

_REFUSALS = re.compile(
    r"is not implemented|once_differentiable|double backward|second.order|differentiate twice"
)
_OPERATION = re.compile(r"derivative for '?(?:aten::)?([\w.:]+)'? is not implemented")
_LARGEST_LIMIT = 0.05  # wrong derivatives cause 7 % and more; bfloat16 alone causes 0.3 %
_MODULE_LIMIT = 1e-6  # of a single module, in double precision


def symmetry_limit(eps: float) -> float:
    """The asymmetry that rounding can explain, relative to ||A w|| for a random sign vector w."""
    return min(10 * math.sqrt(eps), _LARGEST_LIMIT)


@contextlib.contextmanager
def explain_missing_derivatives(objective: Objective) -> Iterator[None]:
    """A context that names the module at fault if torch cannot differentiate an operation twice."""
    try:
        yield
    except RuntimeError as cause:
        if not _REFUSALS.search(str(cause)):
            raise
        found = _faulty_module(objective)
        where = "in the loss, or in a function outside of modules" if found is None else found[0]
        operation = _OPERATION.search(str(cause))
        what = f"of {operation[1]}" if operation else f"of an operation ({str(cause)[:120]})"
        raise OperatorError(
            f"torch has no second derivative {what}, {where}; implement it with elementary "
            "operations (or, for a compiled module, pass the module that was compiled)."
        ) from cause


def report_asymmetry(objective: Objective, defect: float) -> None:
    """Raise OperatorError naming the module, or the loss, that makes an operator asymmetric.

    If neither is wrong on its own, the asymmetry is due to rounding, in a curvature that is tiny
    compared with its terms, and a warning is issued instead.

    Parameters
    ----------
    objective : Objective
    defect : float
        The measured asymmetry, relative to ||A w||.
    """
    found = _faulty_module(objective) or _faulty_loss(objective)
    measured = (
        f"|u^T A w - w^T A u| is {defect:.1e} of ||A w|| for random signs u and w, where second "
        "derivatives are symmetric"
    )
    if found is not None:
        raise OperatorError(
            f"the second derivative of torch is wrong {found[0]} ({found[1]}): {measured}. "
            "Implement it with elementary operations, or correct its backward."
        )
    warn(
        f"{measured}; the second derivatives of every module and of the loss are correct in double "
        "precision, so the cause is probably rounding in a curvature that is nearly zero: use "
        "double precision, or a model whose loss is not yet so small.",
        UserWarning,
    )


def _faulty_module(objective: Objective) -> tuple[str, str] | None:
    """The innermost module whose second derivative is missing or wrong, and the reason."""
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
    """The same for the loss as a function of the outputs, at outputs close to those of a batch."""
    with objective.isolated():
        batch = next(iter(objective.batches), None)
        if batch is None:
            return None  # other processes hold the data
        outputs = objective.outputs(batch)
        if objective.loss is None or not isinstance(outputs, Tensor):
            return None  # the loss is computed inside the model
        noise = _noise()
        z = outputs.detach().to(torch.float64)
        z = (z + noise(z)).requires_grad_()
        value = objective.value(z, _doubled(batch.targets))
        (gradient,) = torch.autograd.grad(value, z, create_graph=True, materialize_grads=True)
        defect = _asymmetry([gradient], [z], noise)
    return ("in the loss", f"asymmetry {defect:.1e} on its own") if defect > _MODULE_LIMIT else None


def _recorded_calls(objective: Objective) -> dict[nn.Module, tuple[Any, Any]]:
    """The arguments of the first call of every module, copied to double precision."""
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
    """The fault of a module's second derivative in double precision; None if it is correct."""
    try:
        double = copy.deepcopy(module).to(torch.float64)
    except RuntimeError:  # it holds tensors that cannot be copied; other modules are tested
        return None
    tensors: list[Tensor] = [p for p in double.parameters() if p.is_floating_point()]
    tensors += [x.requires_grad_() for x in floating_tensors_in((args, kwargs))]
    if not tensors:
        return None
    args, kwargs = _without_leaves(args), _without_leaves(kwargs)
    noise = _noise()
    try:
        with objective.isolated():
            outputs = list(floating_tensors_in(double(*args, **kwargs)))
            terms = [(noise(y) * (y + y**2)).sum() for y in outputs if y.requires_grad]
            value = torch.stack(terms).sum()  # nonlinear, so that no second derivative is zero
            gradients = torch.autograd.grad(
                value, tensors, create_graph=True, allow_unused=True, materialize_grads=True
            )
            defect = _asymmetry(gradients, tensors, noise)
    except RuntimeError as refusal:
        return str(refusal)[:120] if _REFUSALS.search(str(refusal)) else None
    return f"asymmetry {defect:.1e} on its own" if defect > _MODULE_LIMIT else None


def _noise() -> Callable[[Tensor], Tensor]:
    """A function that draws reproducible Gaussian numbers of a tensor's shape."""
    generator = torch.Generator().manual_seed(0)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


def _asymmetry(gradients: Any, tensors: list[Tensor], noise: Any) -> float:
    """The difference of u^T H w and w^T H u for random u and w, relative to the norms."""
    u, w = [noise(x) for x in tensors], [noise(x) for x in tensors]
    Hu, Hw = (_hessian_vector_product(gradients, tensors, v) for v in (u, w))
    gap = abs(_inner(u, Hw) - _inner(w, Hu))
    size = max(_inner(Hu, Hu), _inner(Hw, Hw)) ** 0.5
    return gap / size if size > 0 else 0.0


def _hessian_vector_product(gradients: Any, tensors: list[Tensor], v: list[Tensor]) -> list[Tensor]:
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
    """A copy of nested arguments with floating-point tensors in double precision."""
    return map_tensors(lambda t: t.detach().clone().to(_double_or_same(t)), x)


def _double_or_same(t: Tensor) -> torch.dtype:
    return torch.float64 if t.is_floating_point() else t.dtype


def _without_leaves(x: Any) -> Any:
    """The same arguments as results of an operation: leaves cannot be modified in place."""
    return map_tensors(lambda t: t * 1 if t.requires_grad else t, x)
