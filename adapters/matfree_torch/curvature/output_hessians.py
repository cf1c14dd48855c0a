"""Symmetric matrices on a network's outputs, between its Jacobian and the transpose of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from matfree import OperatorError


class OutputMatrix(ABC):
    """A symmetric matrix on the outputs of one batch."""

    @abstractmethod
    def product(self, u: Tensor) -> Tensor:
        """The matrix times a vector u of the outputs' shape."""


@final
class Differentiated(OutputMatrix):
    """The Hessian of any loss with respect to the outputs, by double backward on them alone.

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
                "the loss does not depend on the model's outputs in a differentiable way (for a "
                "model with a loss of its own: it is not computed from outputs.logits)."
            )
        self.gradient = gradient

    def product(self, u: Tensor) -> Tensor:
        if not self.gradient.requires_grad:
            return torch.zeros_like(u)
        (product,) = torch.autograd.grad(
            self.gradient,
            self.z,
            u,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return product


@final
class Outer(OutputMatrix):
    """divisor * sum_i g_i g_i^T, g_i the i-th sample's part of a loss's gradient in the outputs."""

    def __init__(self, gradient: Tensor, divisor: float) -> None:
        self.gradient, self.divisor = gradient.detach(), divisor

    def product(self, u: Tensor) -> Tensor:
        axes = tuple(range(1, u.ndim))
        inner = self.gradient * u
        inner = inner.sum(dim=axes, keepdim=True) if axes else inner
        return self.gradient * (inner * self.divisor)
