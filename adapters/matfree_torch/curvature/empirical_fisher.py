r"""The empirical Fisher matrix: outer products of the gradients at the targets in the data.

.. math::

    F = \sum_i k_i \, g_i g_i^T

A datum i is a sample, or one position of a sample if every position has a target.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from matfree import OperatorError
from matfree_torch.curvature.gauss_newton import GaussNewtonOperator
from matfree_torch.curvature.likelihoods import MeanOuterProduct, Softmax
from matfree_torch.curvature.loss_hessians import known_likelihood, observed_hessian
from matfree_torch.curvature.output_hessians import (
    AutogradHessian,
    GradientOuterProducts,
    OutputMatrix,
)
from matfree_torch.curvature.over_batches import WeightDecay
from matfree_torch.hvp.strategies import GraphStrategy
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import loss_module, output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.parameters import Parameters

Positions: TypeAlias = Literal["samples", "joint"]
"""What the positions of a sample are counted as. See :func:`fisher`."""


@final
class EmpiricalFisher(GaussNewtonOperator):
    """The operator in which M is the sum of k_i r_i r_i^T for the targets in the data."""

    title = "Fisher matrix (empirical)"

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay,
        strategy: GraphStrategy,
        memory: int | None,
        positions: Positions,
    ) -> None:
        super().__init__(objective, parameters, weight_decay, strategy, memory)
        self.positions = positions

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        z = output_tensor(outputs)
        likelihood = known_likelihood(loss_module(self.objective.loss), z, batch.targets)
        classes = isinstance(likelihood, Softmax)
        axis = None
        if z.ndim > 2 and self.positions == "samples":
            axis = 1 if classes else position_axis(z, batch.targets)
        if likelihood is not None and axis == (1 if classes and z.ndim > 2 else None):
            return MeanOuterProduct(likelihood, likelihood.observed()[None])
        if likelihood is not None and not classes:
            return GradientOuterProducts(likelihood.observed().reshape(z.shape), 1.0, axis)
        hessian, divisor = observed_hessian(self.objective, batch, outputs)
        _require_sum(hessian, axis)
        return GradientOuterProducts(hessian.gradient, divisor, axis)


def position_axis(z: Tensor, targets: Any) -> int | None:
    """The axis of the outputs that belong to one position; None if positions have no targets.

    Raises
    ------
    OperatorError
        The shapes of outputs and targets do not determine it.
    """
    y = targets.get("labels") if isinstance(targets, Mapping) else targets
    if isinstance(y, Tensor) and y.shape == z.shape:
        if z.ndim == 3:
            return 2
        found = [a for a in (1, z.ndim - 1) if z.shape[a] == 1]  # one output for each position
    elif isinstance(y, Tensor) and (y.ndim < z.ndim - 1 or y.shape[1:].numel() == 1):
        return None
    elif isinstance(y, Tensor):
        found = [a for a in range(1, z.ndim) if (*z.shape[:a], *z.shape[a + 1 :]) == y.shape]
    else:
        found = []
    if len(found) != 1:
        shape = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"type {type(y).__name__}"
        raise OperatorError(
            f"outputs of shape {tuple(z.shape)} and targets of {shape} do not determine which axis "
            "holds the outputs of one position; pass positions='joint' for one gradient for each "
            "sample, or return outputs of shape (samples, positions, outputs) with targets of the "
            "same shape."
        )
    return found[0]


def _require_sum(hessian: AutogradHessian, axis: int | None) -> None:
    """Raise OperatorError for a loss that is no sum over the data, such as a contrastive loss.

    The gradient at one half of the data must not depend on the outputs at the other half.
    """
    z = hessian.z
    shape = [n if a == 0 or axis not in (None, a) else 1 for a, n in enumerate(z.shape)]
    if axis is None:
        shape[1:] = [1] * (z.ndim - 1)
    data = torch.arange(torch.Size(shape).numel(), device=z.device).reshape(shape)
    half = (data % 2 == 0).to(z.dtype)
    with contextlib.suppress(RuntimeError):  # the second derivative may not be implemented
        Mu = hessian.matvec(half.expand(z.shape).contiguous())
        mixed = torch.linalg.vector_norm(Mu * (1 - half))
        if mixed > torch.finfo(z.dtype).eps ** 0.5 * torch.linalg.vector_norm(Mu):
            noun = "samples" if axis is None else "positions"
            cure = "" if axis is None else "; pass positions='joint' if it is a sum over samples"
            raise OperatorError(
                f"the empirical Fisher matrix needs a loss that is a sum over {noun}, and the "
                f"gradient of this one at some {noun} depends on the outputs at others{cure}."
            )
