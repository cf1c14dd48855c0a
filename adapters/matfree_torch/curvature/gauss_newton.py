r"""Gauss-Newton and Fisher matrices of a network: J^T M J without a second derivative of it.

J is the Jacobian of the network's outputs and M a small matrix on them, known in closed form
for the usual losses. J^T is a backward pass; J comes from differentiating J^T u, which is
linear in u, with respect to u: no forward mode, and the same coverage of operations as the
Hessian. Whatever M = sum r r^T is, the result is positive semidefinite.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matfree import OperatorError
from matfree_torch.autograd.convolutions import fast_double_backward
from matfree_torch.curvature.likelihoods import Likelihood, likelihood
from matfree_torch.curvature.output_hessians import Differentiated, OutputMatrix
from matfree_torch.curvature.over_batches import ParameterCurvature, WeightDecay
from matfree_torch.hvp.strategies import GraphStrategy, graph_retention, require_strategy
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import loss_module, output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Parameters

_TARGETS = 1000  # the stream of drawn targets, apart from those of the algorithms
_DRAWS_AT_ONCE = 64


class Linearized(NamedTuple):
    """A batch's outputs z, and J^T u as a function of u, both with their graphs."""

    z: Tensor
    u: Tensor
    pulled: dict[str, Tensor]
    matrix: OutputMatrix

    @classmethod
    def make(cls, z: Tensor, layout: Layout, matrix: OutputMatrix) -> Linearized:
        """The graph of J^T u with respect to the layout's tensors."""
        if not z.requires_grad:
            raise OperatorError(
                f"the model's outputs do not depend on the {layout.noun}s in a differentiable way; "
                "are they detached?"
            )
        u = torch.zeros_like(z).requires_grad_()
        pulled = torch.autograd.grad(
            z, layout.tensors, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return cls(z, u, dict(zip(layout.names, pulled, strict=True)), matrix)

    def push(self, v: dict[str, Tensor]) -> Tensor:
        """J v: the derivative of <J^T u, v> with respect to u."""
        used = [name for name in v if self.pulled[name].requires_grad]
        if not used:
            return torch.zeros_like(self.z)
        (tangent,) = torch.autograd.grad(
            [self.pulled[name] for name in used],
            self.u,
            [v[name] for name in used],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return tangent

    def pull(self, cotangent: Tensor, rows: Layout) -> tuple[Tensor, ...]:
        """J^T cotangent, the rows' pieces of it."""
        return torch.autograd.grad(
            self.z,
            rows.tensors,
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


class GaussNewtonOperator(ParameterCurvature):
    """J^T M J for the outputs' Jacobian J; made by :func:`ggn` and :func:`fisher`.

    A subclass says what M is.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import ggn
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> G = ggn(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
    >>> G.positive_semidefinite, bool(torch.linalg.eigvalsh(G.to_dense())[0] > -1e-5)
    (True, True)
    """

    positive_semidefinite = True

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay = 0.0,
        strategy: GraphStrategy = "auto",
        memory: int | None = None,
    ) -> None:
        require_strategy(strategy, GraphStrategy, memory)
        retention = graph_retention(strategy, memory)
        super().__init__(objective, parameters, weight_decay, strategy, retention)

    @abstractmethod
    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        """M for one batch."""

    def _prepare(self, batch: Batch) -> Linearized:
        with fast_double_backward():
            outputs = self.objective.outputs(batch)
        return Linearized.make(output_tensor(outputs), self.layout, self._matrix(batch, outputs))

    def _multiply(
        self, prepared: Linearized, v: dict[str, Tensor], rows: Layout
    ) -> tuple[Tensor, ...]:
        return prepared.pull(prepared.matrix.product(prepared.push(v)), rows)


def output_hessian(objective: Objective, batch: Batch, outputs: Any) -> OutputMatrix:
    """The loss's Hessian in a batch's outputs, in closed form where there is one."""
    like = _likelihood(objective, batch, outputs)
    return _differentiated(objective, batch, outputs) if like is None else like


def _likelihood(objective: Objective, batch: Batch, outputs: Any) -> Likelihood | None:
    z = output_tensor(outputs)
    with torch.no_grad():
        objective.value(outputs, batch.targets)  # refuses what is no scalar
    return likelihood(loss_module(objective.loss), z, batch.targets)


def _differentiated(objective: Objective, batch: Batch, outputs: Any) -> Differentiated:
    """The loss as a function of the outputs, cut off from the network where that can be done."""
    if isinstance(outputs, Tensor):
        outputs = outputs.detach().requires_grad_()
    return Differentiated(output_tensor(outputs), objective.value(outputs, batch.targets))
