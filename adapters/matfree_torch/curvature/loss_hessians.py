"""The Hessian of a loss with respect to a batch's outputs, in closed form or by double backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from matfree_torch.curvature.likelihoods import Bernoulli, Gaussian, Likelihood, Softmax
from matfree_torch.curvature.output_hessians import AutogradHessian, OutputMatrix
from matfree_torch.data.reduction import observed
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import loss_module, output_tensor
from matfree_torch.objective.objective import Objective

CLOSED_FORM_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
"""The losses with a closed form. All of them are convex in the outputs."""


def loss_hessian(objective: Objective, batch: Batch, outputs: Any) -> OutputMatrix:
    """The Hessian of the loss in a batch's outputs, in closed form if there is one."""
    likelihood = batch_likelihood(objective, batch, outputs)
    return autograd_hessian(objective, batch, outputs) if likelihood is None else likelihood


def batch_likelihood(objective: Objective, batch: Batch, outputs: Any) -> Likelihood | None:
    """The likelihood of a batch that the loss belongs to, if it is a known one."""
    z = output_tensor(outputs)
    with torch.no_grad():
        objective.value(outputs, batch.targets)  # raises an error if the loss is not a scalar
    return known_likelihood(loss_module(objective.loss), z, batch.targets)


def autograd_hessian(objective: Objective, batch: Batch, outputs: Any) -> AutogradHessian:
    """The Hessian of the loss in a batch's outputs by double backward.

    Outputs that are one tensor are detached, so that the graph does not extend to the network.
    """
    if isinstance(outputs, Tensor):
        outputs = outputs.detach().requires_grad_()
    return AutogradHessian(output_tensor(outputs), objective.value(outputs, batch.targets))


def observed_hessian(
    objective: Objective, batch: Batch, outputs: Any
) -> tuple[AutogradHessian, float]:
    """The same, and the number that the loss divides its sum by.

    It is the weight of the batch if the loss is not recognized.
    """
    if isinstance(outputs, Tensor):
        outputs = outputs.detach().requires_grad_()
    value, reduction = observed(objective.value, outputs, batch.targets)
    hessian = AutogradHessian(output_tensor(outputs), value)
    batches = objective.batches
    if batches.normalizer is not None or not batches.averaged:
        return hessian, batch.weight
    if reduction.is_sum:
        return hessian, 1.0
    return hessian, batch.weight if reduction.divisor is None else reduction.divisor


def known_likelihood(loss: nn.Module | None, outputs: Tensor, targets: Any) -> Likelihood | None:
    """The likelihood that a loss belongs to at these outputs and targets, if it is a known one.

    Types are compared exactly, because a subclass of one of torch's losses may override it.
    """
    if not isinstance(targets, Tensor):
        return None
    kind = type(loss)
    if loss is not None and kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        softmax = Softmax(loss, outputs, targets)
        if kind is nn.CrossEntropyLoss or _is_normalized(softmax.z):
            return softmax
    if loss is not None and targets.shape == outputs.shape:  # broadcast targets mix the samples
        if kind is nn.MSELoss:
            return Gaussian(loss, outputs, targets)
        if kind is nn.BCEWithLogitsLoss:
            return Bernoulli(loss, outputs, targets)
    return None


def _is_normalized(log_p: Tensor) -> bool:
    """Whether the rows are logarithms of probabilities, so that NLL is their cross-entropy."""
    gap = torch.logsumexp(log_p, dim=1).abs().max()
    return bool(gap < 100 * torch.finfo(log_p.dtype).eps * log_p.shape[1])
