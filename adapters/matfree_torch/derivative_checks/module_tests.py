"""Tests of the second derivatives of one module, or of the loss, on copies in double precision."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from matfree_torch.data.nested import map_tensors, tensors_in
from matfree_torch.derivative_checks.custom_functions import modules_with_hooks
from matfree_torch.derivative_checks.single_functions import (
    ROUNDING,
    UNSUPPORTED,
    Verdict,
    second_derivative,
)
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.entries import is_differentiable, real_view


def place_of(name: str, module: nn.Module) -> str:
    """The place of a fault, for messages: the type and the name of the module."""
    return f"in {type(module).__name__} " + (f"layer {name!r}" if name else "(the model itself)")


def recorded_calls(
    objective: Objective, batch: Batch, modules: Collection[nn.Module]
) -> dict[nn.Module, tuple[Any, Any]]:
    """Copies of the arguments of the first call of these modules."""
    calls: dict[nn.Module, tuple[Any, Any]] = {}

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        if module not in calls:
            calls[module] = _in_precision(args, None), _in_precision(kwargs, None)

    handles = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in modules_with_hooks(modules)
    ]
    try:
        with objective.isolated(), contextlib.suppress(RuntimeError):
            objective.outputs(batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def module_verdict(objective: Objective, module: nn.Module, args: Any, kwargs: Any) -> Verdict:
    """Test a copy of a module, in double precision if it supports that."""
    verdict = Verdict(obstacle=UNSUPPORTED)
    for dtype in (torch.float64, None):
        with contextlib.suppress(*_FAILURES), objective.isolated():
            twin = copy.deepcopy(module)
            twin._apply(lambda t, to=dtype: _cast(t, to))  # type: ignore[no-untyped-call]  # torch's own
            inputs = _in_precision((args, kwargs), dtype)
            tensors = [x for x in (*twin.parameters(), *tensors_in(inputs)) if is_differentiable(x)]
            if not tensors:
                return Verdict()
            for x in tensors:
                x.requires_grad_()

            def function(twin: nn.Module = twin, inputs: Any = inputs) -> Tensor:
                positional, named = _as_non_leaves(inputs)
                return _nonlinear_sum(twin(*positional, **named))

            verdict = second_derivative(function, tensors)
            if verdict.obstacle not in (ROUNDING, UNSUPPORTED):
                return verdict
    return verdict


def loss_verdict(objective: Objective, batch: Batch) -> Verdict:
    """Test the loss as a function of the outputs, at outputs close to those of a batch."""
    if objective.loss is None:
        return Verdict(obstacle="the model computes it itself")
    verdict = Verdict(obstacle=UNSUPPORTED)
    with objective.isolated():
        outputs = objective.outputs(batch)
        for dtype in (torch.float64, None):
            with contextlib.suppress(*_FAILURES):
                near, targets = _in_precision(outputs, dtype), _in_precision(batch.targets, dtype)
                tensors = [x for x in tensors_in(near) if is_differentiable(x)]
                for x in tensors:
                    generator = torch.Generator().manual_seed(0)
                    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
                    x.add_(noise.to(x.device)).requires_grad_()

                def function(near: Any = near, targets: Any = targets) -> Tensor:
                    return objective.value(near, targets)

                verdict = second_derivative(function, tensors)
                if verdict.obstacle not in (ROUNDING, UNSUPPORTED):
                    return verdict
    return verdict


# What a copy of a module may raise in a precision that it does not support.
_FAILURES = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, copy.Error)


def _nonlinear_sum(outputs: Any) -> Tensor:
    """A scalar that depends on all outputs nonlinearly, so that no second derivative is zero."""
    generator = torch.Generator().manual_seed(1)
    terms = []
    for y in tensors_in(outputs):
        if y.requires_grad:
            z = real_view(y)
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
            terms.append((noise * (z + z**2)).sum())
    return torch.stack(terms).sum()


def _in_precision(x: Any, dtype: torch.dtype | None) -> Any:
    """A copy of nested arguments, with real and complex tensors in another precision."""
    return map_tensors(lambda t: _cast(t.detach().clone(), dtype), x)


def _cast(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not is_differentiable(t):
        return t
    return t.to(dtype.to_complex() if t.is_complex() else dtype)


def _as_non_leaves(x: Any) -> Any:
    """The same arguments as non-leaf tensors, because leaves cannot be modified in place."""
    return map_tensors(lambda t: t * 1 if t.requires_grad else t, x)
