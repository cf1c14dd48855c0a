r"""Operators of the form J^T M J, with the Jacobian J of a network's outputs.

Gauss-Newton and Fisher matrices are sums over samples

.. math::

    A = \sum_i J_i^T M_i J_i, \qquad J_i = \frac{\partial z_i}{\partial \theta},

where z_i are the outputs for sample i and M_i is a small symmetric matrix on them, known in closed
form for the usual losses. No second derivative of the network is needed. J^T u is a backward pass,
and J v is the derivative of <J^T u, v> with respect to u, which is exact because J^T u is linear
in u. Since this uses no forward-mode differentiation, every operation with a double backward is
supported. A is positive semidefinite if every M_i is, as for Fisher matrices and for losses that
are convex in the outputs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matfree import OperatorError
from matfree_torch.autograd.convolutions import fast_double_backward
from matfree_torch.autograd.graph_nodes import graph_leaves
from matfree_torch.curvature.output_hessians import AutogradHessian, OutputMatrix
from matfree_torch.curvature.over_batches import ParameterCurvature, WeightDecay
from matfree_torch.derivative_checks import checks
from matfree_torch.derivative_checks.custom_functions import has_custom_functions
from matfree_torch.hvp.strategies import GraphStrategy, graph_cache_policy, require_strategy
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.entries import real_view
from matfree_torch.vectors.layout import Layout
from matfree_torch.vectors.parameters import Parameters


class Linearized(NamedTuple):
    """The linearization of a network for one batch: z and J^T u, with their autograd graphs."""

    z: Tensor
    """The outputs of the network."""
    u: Tensor
    """A tensor of the shape of z, of which only the graph matters."""
    vjp_graph: dict[str, Tensor]
    """J^T u by name, as a differentiable function of u."""
    matrix: OutputMatrix

    @classmethod
    def make(cls, z: Tensor, layout: Layout, matrix: OutputMatrix) -> Linearized:
        """Build the graph of J^T u, where J is the Jacobian of z in the layout's tensors."""
        if not z.requires_grad:
            raise OperatorError(
                f"the model's outputs do not depend on the {layout.noun}s in a differentiable way; "
                "are they detached?"
            )
        # The value of u does not matter, because J^T u is linear in u.
        u = torch.zeros_like(z).requires_grad_()
        vjp_graph = torch.autograd.grad(
            z, layout.tensors, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return cls(z, u, dict(zip(layout.names, vjp_graph, strict=True)), matrix)

    def jvp(self, v: dict[str, Tensor]) -> Tensor:
        """J v, the derivative of <J^T u, v> with respect to u."""
        used = [name for name in v if self.vjp_graph[name].requires_grad]
        if not used:
            return torch.zeros_like(self.z)
        (tangent,) = torch.autograd.grad(
            [self.vjp_graph[name] for name in used],
            self.u,
            [v[name] for name in used],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return tangent

    def adjoint_gap(self, v: dict[str, Tensor], layout: Layout) -> float:
        """The difference of <u, J v> and <J^T u, v> for a random u, relative to their terms."""
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(self.z.shape, generator=generator, dtype=self.z.dtype).to(self.z.device)
        pulled = zip(layout.names, self.vjp(u, layout), strict=True)
        image = real_view(self.jvp(v))
        terms = [(real_view(v[name]) * real_view(x)).flatten() for name, x in pulled]
        gap = abs(float((real_view(u) * image).sum()) - sum(float(t.sum()) for t in terms))
        size = float(image.norm()) + math.hypot(*(float(t.norm()) for t in terms))
        return gap / size if size > 0 else 0.0

    def vjp(self, cotangent: Tensor, output_layout: Layout) -> tuple[Tensor, ...]:
        """J^T applied to a cotangent, one tensor for each tensor of ``output_layout``."""
        return torch.autograd.grad(
            self.z,
            output_layout.tensors,
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


class GaussNewtonOperator(ParameterCurvature):
    """J^T M J with the Jacobian J of the outputs; returned by :func:`ggn` and :func:`fisher`.

    A subclass defines M.

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
    """Whether every M_i is positive semidefinite. A subclass with other matrices overrides it."""

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay = 0.0,
        strategy: GraphStrategy = "auto",
        memory: int | None = None,
    ) -> None:
        require_strategy(strategy, GraphStrategy, memory)
        policy = graph_cache_policy(strategy, memory)
        super().__init__(objective, parameters, weight_decay, strategy, policy)
        self._loss_checked = False

    @abstractmethod
    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        """The matrix M of one batch."""

    def _prepare(self, batch: Batch) -> Linearized:
        with fast_double_backward():
            outputs = self.objective.outputs(batch)
        self.objective.finite_value(outputs, batch.targets)  # closed forms do not compute the loss
        if not self._loss_checked:
            self._require_loss_of_outputs(batch, outputs)
            self._loss_checked = True
        return Linearized.make(output_tensor(outputs), self.layout, self._matrix(batch, outputs))

    def _require_loss_of_outputs(self, batch: Batch, outputs: Any) -> None:
        """Raise OperatorError if the loss depends on parameters directly, as a penalty does."""
        if isinstance(outputs, Tensor):  # the graph does not have to extend to the network
            outputs = outputs.detach().requires_grad_()
        value = self.objective.value(outputs, batch.targets)
        names = {id(p): name for name, p in zip(self.names, self.layout.tensors, strict=True)}
        read = [
            names[id(leaf)]
            for leaf in graph_leaves(value, output_tensor(outputs))
            if id(leaf) in names
        ]
        if read:
            raise OperatorError(
                f"the loss depends on the parameter {min(read)!r} directly, not only through the "
                f"outputs (is it a penalty?), and a {self.title} does not include such terms; pass "
                "the loss without this term and add its Hessian: weight_decay= for an L2 penalty, "
                "otherwise ggn(...) + hessian_of(penalty, dict(model.named_parameters())); or use "
                "hessian(...)."
            )

    def _verify(self, batch: Batch, prepared: Any, v: dict[str, Tensor], product: Tensor) -> None:
        if isinstance(prepared.matrix, AutogradHessian):
            checks.require_custom_functions(self.objective, batch, loss_only=True)
        if has_custom_functions(prepared.z):
            checks.require_adjoint(
                self.objective, batch, prepared.adjoint_gap(v, self.layout), self._eps()
            )

    def _multiply(
        self, prepared: Linearized, v: dict[str, Tensor], rows: Layout
    ) -> tuple[Tensor, ...]:
        return prepared.vjp(prepared.matrix.matvec(prepared.jvp(v)), rows)
