"""Diagnosis of modules whose second derivative is missing or wrong in torch.

Let H be the Hessian of a scalar function of one module's outputs, with respect to the inputs and
parameters of the module. A copy of every module is tested for a missing or wrong H. Innermost
modules are tested first, so that the error names the module to fix.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator

from matfree import OperatorError
from matfree.errors import warn
from matfree_torch.derivative_checks.module_tests import (
    loss_verdict,
    module_verdict,
    place_of,
    recorded_calls,
)
from matfree_torch.derivative_checks.single_functions import REFUSALS
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective

_OPERATION = re.compile(r"derivative for '?(?:aten::)?([\w.:]+)'? is not implemented")
# An asymmetry relative to ||A w||. All known wrong derivatives cause 0.07 or more, whereas the
# rounding errors of bfloat16 cause 0.003.
_LARGEST_LIMIT = 0.05


def symmetry_limit(eps: float) -> float:
    """The asymmetry that rounding can explain, relative to ||A w|| for a random sign vector w."""
    return min(10 * math.sqrt(eps), _LARGEST_LIMIT)


@contextlib.contextmanager
def explain_missing_derivatives(objective: Objective) -> Iterator[None]:
    """A context that names the module at fault if torch cannot differentiate an operation twice."""
    try:
        yield
    except RuntimeError as cause:
        if not REFUSALS.search(str(cause)):
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

    If every module and the loss are correct in double precision, the cause is probably rounding,
    in a curvature that is tiny compared with its terms, and a warning is issued instead.

    Parameters
    ----------
    objective : Objective
    defect : float
        The measured asymmetry, relative to ||A w||.
    """
    found = _faulty_module(objective) or _faulty_loss(objective)
    measured = (
        f"|u^T A w - w^T A u| is {defect:.1e} of ||A w|| for random signs u and w, although "
        "second derivatives are symmetric"
    )
    if found is not None:
        raise OperatorError(
            f"the second derivative of torch is wrong {found[0]} ({found[1]}): {measured}. "
            "Implement it with elementary operations, or correct its backward."
        )
    warn(
        f"{measured}; the second derivatives of every module and of the loss are correct in double "
        "precision, so the cause is probably rounding in a curvature that is nearly zero: use "
        "double precision, or an earlier checkpoint of the model.",
        UserWarning,
    )


def report_difference(objective: Objective, gap: float) -> None:
    """Raise OperatorError if a matvec is wrong and a faulty module, or a faulty loss, is found.

    Parameters
    ----------
    objective : Objective
    gap : float
        The difference of H v and a central difference of gradients, relative to their norms.
    """
    found = _faulty_module(objective) or _faulty_loss(objective)
    if found is not None:
        raise OperatorError(
            f"the second derivative of torch is wrong {found[0]} ({found[1]}): H v differs from a "
            f"central difference of gradients by {gap:.1e} of its norm. Implement it with "
            "elementary operations, or pass strategy='finite-difference' to hessian(...)."
        )


def _faulty_module(objective: Objective) -> tuple[str, str] | None:
    """The innermost module whose second derivative is missing or wrong, and the reason."""
    batch = _first_batch(objective)
    if batch is None:
        return None
    modules = dict(objective.model.named_modules())
    calls = recorded_calls(objective, batch, modules.values())
    for name, module in reversed(modules.items()):  # children first
        if module in calls:
            verdict = module_verdict(objective, module, *calls[module])
            if verdict.fault is not None:
                return place_of(name, module), verdict.fault
    return None


def _faulty_loss(objective: Objective) -> tuple[str, str] | None:
    """The loss and its fault, if its second derivative in the outputs is missing or wrong."""
    batch = _first_batch(objective)
    fault = None if batch is None else loss_verdict(objective, batch).fault
    return None if fault is None else ("in the loss", fault)


def _first_batch(objective: Objective) -> Batch | None:
    """The first batch; None if other processes hold the data."""
    with objective.isolated():
        return next(iter(objective.batches), None)
