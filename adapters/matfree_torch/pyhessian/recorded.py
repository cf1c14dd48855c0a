"""Activations at ports and the loss's gradients with respect to them, recorded in a forward pass.

At every port the activation is replaced by a copy that only the chosen module reads. The gradient
with respect to this copy can be differentiated again, and its derivative is a block of the
activation Hessian, also where other operations read the activation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.ports import visited_ports


class Recorded(NamedTuple):
    """What one forward pass and one gradient have shown at the ports, by name."""

    graph: Any
    """The graph of the operator at this state of the model."""
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    branched: tuple[str, ...]
    """The ports whose tensor is read by other operations as well."""


def record(A: ActivationHessian) -> Recorded:
    """Run the model once. Activations and gradients are connected by a graph."""
    graph, (batch,) = A.graph(), A.objective.batches
    names = {(port.module, port.call): port.name for port in A.ports}
    calls = dict.fromkeys((port.module for port in A.ports), 0)
    tensors: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}

    def visit(module: nn.Module, x: Tensor) -> Tensor:
        name = names[module, calls[module]]
        calls[module] += 1
        # The sum is a new tensor that requires a gradient, also if the activation does not.
        tensors[name], copies[name] = x, x + torch.zeros_like(x, requires_grad=True)
        # The module may work in place, on a clone, so that what is recorded stays its input.
        return x if A.at == "tensor" else copies[name].clone()

    with A.differentiating(), A.objective.isolated():
        with visited_ports(calls, A.at, visit):
            outputs = A.objective.outputs(batch)
        if A.at == "tensor":
            return Recorded(graph, tensors, graph.gradients, ())
        value = A.objective.value(outputs, batch.targets)
        gradients = torch.autograd.grad(
            value,
            list(copies.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        own = dict(zip(copies, gradients, strict=True))
        return Recorded(graph, copies, own, _branched(value, tensors, own))


def _branched(
    value: Tensor, tensors: dict[str, Tensor], gradients: dict[str, Tensor]
) -> tuple[str, ...]:
    """The ports whose gradient differs from that of the tensor with all of its readers.

    If the module is the only reader, both come from the same backward pass through the same
    operations, and are equal to the last bit.
    """
    leaves = {name: x for name, x in tensors.items() if x.requires_grad}
    if not leaves:
        return ()
    whole = torch.autograd.grad(
        value, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return tuple(
        name
        for name, g in zip(leaves, whole, strict=True)
        if not torch.equal(g, gradients[name].detach())
    )
