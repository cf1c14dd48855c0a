"""Symmetric matrices on the outputs of a network: the M of J^T M J."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from matfree import OperatorError


class OutputMatrix(ABC):
    """A symmetric matrix on the outputs of one batch."""

    @abstractmethod
    def matvec(self, u: Tensor) -> Tensor:
        """M u for a tensor u of the outputs' shape."""


@final
class AutogradHessian(OutputMatrix):
    """The Hessian of any loss with respect to the outputs, by double backward on the loss only.

    Parameters
    ----------
    outputs : the tensor that the loss was computed from
    value : the loss

    Raises
    ------
    OperatorError
        The loss does not depend on that tensor.
    """

    def __init__(self, outputs: Tensor, value: Tensor) -> None:
        self.z = outputs
        gradient: Tensor | None = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, outputs, create_graph=True, allow_unused=True)
        if gradient is None:
            raise OperatorError(
                "the loss does not depend on the model's outputs in a differentiable way (if the "
                "model computes its own loss, it does not compute it from outputs.logits)."
            )
        self.gradient = gradient

    def matvec(self, u: Tensor) -> Tensor:
        if not self.gradient.requires_grad:  # the loss is linear in the outputs
            return torch.zeros_like(u)
        (Mu,) = torch.autograd.grad(
            self.gradient,
            self.z,
            u,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return Mu


@final
class GradientOuterProducts(OutputMatrix):
    r"""The sum of outer products of the samples' gradients, scaled.

    .. math::

        M = k \sum_i g_i g_i^T

    Parameters
    ----------
    gradient : the gradient of a loss in the outputs
    scale : the factor k
    axis : the axis along which one g_i lies; by default g_i is the i-th row along the first axis
    """

    def __init__(self, gradient: Tensor, scale: float, axis: int | None) -> None:
        self.gradient, self.scale, self._axis = gradient.detach(), scale, axis

    def matvec(self, u: Tensor) -> Tensor:
        axes = tuple(range(1, u.ndim)) if self._axis is None else (self._axis,)
        inner = self.gradient * u
        inner = inner.sum(dim=axes, keepdim=True) if axes else inner
        return (self.gradient * (inner * self.scale)).to(u.dtype)
