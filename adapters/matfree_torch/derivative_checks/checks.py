"""What the first matvec checks: custom autograd functions, and a matvec against a difference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from matfree import OperatorError
from matfree.errors import warn
from matfree_torch.derivative_checks.custom_functions import (
    has_custom_functions,
    kink_in,
    used_functions,
)
from matfree_torch.derivative_checks.faulty_modules import report_difference, symmetry_limit
from matfree_torch.derivative_checks.module_tests import (
    loss_verdict,
    module_verdict,
    place_of,
    recorded_calls,
)
from matfree_torch.hvp.strategies import central_difference
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout

_NOT_COMPARED = "H v was not compared with a difference of gradients, because"
NO_BATCH = f"{_NOT_COMPARED} this process has no batch"
_SMALL_STEPS = [1e-7, 2e-8]
"""In double precision and relative to the parameters: few jumps of the gradient are crossed."""


def require_hessian_vector_product(
    objective: Objective,
    batch: Batch,
    layout: Layout,
    v: dict[str, Tensor],
    product: Tensor,
    eps: float,
) -> str:
    """Raise OperatorError if torch dropped terms of a product of a batch's Hessian with v.

    Custom autograd functions are tested one by one. If there are none, the product is compared
    with a central difference of gradients. A gradient that jumps permits this in double precision
    only, with steps that are so small that hardly any jump is crossed.

    Parameters
    ----------
    objective, batch, layout
    v : dict of tensors by name
    product : H v as a flat vector
    eps : float
        That of the precision of matvecs.

    Returns
    -------
    What was compared with what result, or why nothing could be compared.
    """
    with objective.isolated():
        value = objective.value(objective.outputs(batch), batch.targets)
    if has_custom_functions(value):
        return require_custom_functions(objective, batch)
    kink = kink_in(value)
    del value  # the graph
    if layout.redistribution is not None:  # the step size would need a collective call
        return f"{_NOT_COMPARED} the parameters are sharded"
    if eps > torch.finfo(torch.float32).eps:
        return f"{_NOT_COMPARED} half precision is too coarse for differences"
    if kink is not None and eps > torch.finfo(torch.float64).eps:
        return (
            f"{_NOT_COMPARED} the derivative of {kink} jumps, and a difference in single precision "
            "crosses many jumps; convert the model and the data to double precision to compare them"
        )

    def gap(relative_step: float | None) -> tuple[float, Tensor]:
        terms = central_difference(objective, batch, layout, v, layout, relative_step)
        difference = layout.pack(terms)
        size = max(float(difference.norm()), float(product.norm()))
        return float((product - difference).norm()) / (size or 1.0), difference

    limit, steps = 10 * eps ** (1 / 3), [None] if kink is None else _SMALL_STEPS
    found, first = gap(steps[0])
    if found > limit and kink is not None:
        again, second = gap(steps[1])
        if float((first - second).norm()) > 0.1 * found * float(first.norm()):
            return f"{_NOT_COMPARED} the derivative of {kink} jumps even within the smallest step"
        found = min(found, again)
    if found > limit:  # far above the error eps^(2/3) of a smooth function
        report_difference(objective, found)
        return (
            f"H v differs from a difference of gradients by {found:.1e} of its norm, although the "
            "second derivatives of all modules and of the loss are correct: the loss holds values "
            "constant (detach), a hook changes gradients, or H v is close to rounding errors"
        )
    return f"H v agrees with a difference of gradients to {found:.1e} of its norm"


def require_custom_functions(objective: Objective, batch: Batch, *, loss_only: bool = False) -> str:
    """Raise OperatorError if the second derivative of a custom autograd function is wrong.

    A backward pass that works under ``no_grad``, or returns values that the forward pass saved,
    has no derivative of its own. Torch then drops terms, and the matrix may still be symmetric.

    Parameters
    ----------
    objective, batch
    loss_only : bool
        Whether only functions between the outputs and the loss are tested.

    Returns
    -------
    What was tested, and what could not be.

    Warns
    -----
    UserWarning
        A function could not be tested.
    """
    names = {module: name for name, module in objective.model.named_modules()}
    tested, unknown = set[Any](), list[str]()
    used = used_functions(objective, batch, loss_only=loss_only)
    calls = recorded_calls(objective, batch, [m for m in used if m is not None])
    for module, functions in used.items():
        kind = type(module), frozenset(functions)
        if kind in tested:  # another layer of the same kind was tested
            continue
        tested.add(kind)
        where = "in the loss" if module is None else place_of(names[module], module)
        if module is None:
            verdict = loss_verdict(objective, batch)
        else:
            verdict = module_verdict(objective, module, *calls[module])
        what = ", ".join(sorted(functions))
        if verdict.fault is not None:
            raise OperatorError(
                f"the second derivative of torch is wrong {where} ({verdict.fault}): torch cannot "
                f"differentiate the backward of {what}. Implement it with differentiable "
                "operations, without no_grad, detach or gradients computed in the forward pass; "
                "or pass strategy='finite-difference' to hessian(...)."
            )
        if verdict.obstacle is not None:
            unknown.append(f"{what} {where} could not be tested, because {verdict.obstacle}")
    if unknown:
        warn(
            f"the second derivative of {unknown[0]}; compare a matvec with one of "
            "strategy='finite-difference'.",
            UserWarning,
        )
        return "; ".join(unknown)
    names_used = ", ".join(sorted(set().union(*used.values())))
    return f"the second derivatives of {names_used} agree with differences of their gradients"


def require_adjoint(objective: Objective, batch: Batch, gap: float, eps: float) -> None:
    """Raise OperatorError if J v, computed by differentiating J^T u, is not the adjoint of J^T u.

    Parameters
    ----------
    objective, batch
    gap : float
        The difference of <u, J v> and <J^T u, v>, relative to their terms.
    eps : float
        That of the precision of matvecs.
    """
    if gap <= symmetry_limit(eps):
        return
    names = {module: name for name, module in objective.model.named_modules()}
    places = [
        f"{', '.join(sorted(functions))} {place_of(names[module], module)}"
        for module, functions in used_functions(objective, batch).items()
        if module is not None
    ]
    raise OperatorError(
        f"torch cannot differentiate the backward of {'; '.join(places)}: <u, J v> differs from "
        f"<J^T u, v> by {gap:.1e} of their terms. Let its backward be a differentiable function of "
        "the gradient that it is given, without no_grad, detach or once_differentiable."
    )
