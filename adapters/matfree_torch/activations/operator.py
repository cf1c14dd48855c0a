r"""The Hessian of a loss with respect to activations.

At every port l, a perturbation that is zero is added to the activation, and the loss L is
differentiated twice with respect to the perturbations:

.. math:: A_{lm} = \frac{\partial^2 L}{\partial \delta_l \, \partial \delta_m}
   \quad\text{at } \delta = 0.

This matrix is a Hessian, hence symmetric, also for residual branches, in-place activations and
modules that are called more than once.

A common alternative differentiates the gradient that a backward hook receives with respect to
the tensor that a forward hook captured. The result is not a Hessian: the gradient depends on
the activation through every path of the network, and the captured tensor only through some.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from matfree import OperatorError
from matfree.protocol import Seed
from matfree.results import Estimate
from matfree_torch.activations.port_traces import (
    PortCurvature,
    PortTraceMethod,
    TraceSettings,
    combine_batches,
    port_traces,
)
from matfree_torch.activations.ports import (
    Selection,
    Where,
    choose_modules,
    find_ports,
    perturbed_outputs,
)
from matfree_torch.autograd.convolutions import fast_double_backward
from matfree_torch.curvature.gauss_newton import Linearized
from matfree_torch.curvature.loss_hessians import loss_hessian
from matfree_torch.derivative_checks import checks
from matfree_torch.derivative_checks.custom_functions import has_custom_functions
from matfree_torch.objective.model_calls import output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.objective.reproducibility import differ, loss_of_batch, require_reproducible
from matfree_torch.vectors.layout import Layout

_PORT_NOUNS = {"input": "inputs", "output": "outputs", "tensor": "tensors read by"}


class BatchGraph(NamedTuple):
    """The autograd graph of one batch at one state of the model."""

    version: int
    """The state of the model, see :class:`ModelState`."""
    outputs: Any
    gradients: dict[str, Tensor]
    """The gradient of the loss with respect to the perturbation at every port."""


@final
class ActivationHessian(PortCurvature):
    """The Hessian of a loss with respect to activations, returned by :func:`activation_hessian`.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import activation_hessian
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> data = torch.randn(5, 2), torch.randn(5, 1)
    >>> A = activation_hessian(model, torch.nn.MSELoss(), data, modules=torch.nn.Linear)
    >>> A.names, A.block("0", "2").shape, A.traces(seed=0)["2"].method
    (('0', '2'), (10, 15), 'exact')
    """

    def __init__(self, objective: Objective, modules: Selection, at: Where) -> None:
        if at not in _PORT_NOUNS:
            raise ValueError(f"at must be 'input', 'output' or 'tensor': got {at!r}.")
        self.at, self._modules = at, modules
        objective.follow()
        self._find_ports(objective)
        deltas = {port.name: port.zeros() for port in self.ports}
        super().__init__(objective, Layout(deltas, "port"))
        self._graph: BatchGraph | None = None

    def _find_ports(self, objective: Objective) -> None:
        """Find the ports in a forward pass of the model as it is now."""
        chosen = choose_modules(objective.model, self._modules)
        with objective.isolated():
            (self._batch,) = objective.batches
            self.ports, self._unperturbed_loss = find_ports(objective, self._batch, chosen, self.at)
        self._ports_version = objective.state.version

    def traces(
        self,
        method: PortTraceMethod = "auto",
        *,
        num_probes: int = 32,
        seed: Seed = None,
        per_sample: bool = False,
    ) -> dict[str, Estimate]:
        """The trace of the diagonal block of every port.

        Parameters
        ----------
        method, num_probes, seed, per_sample
            As for :func:`activation_traces`.

        Returns
        -------
        dict of name to Estimate

        Raises
        ------
        OperatorError, ValueError
            As for :func:`activation_traces`.

        Cost
        ----
        As for :func:`activation_traces`. The graph of the batch is shared with the matvecs.
        """
        settings = TraceSettings.make(method, num_probes, seed, per_sample)
        with self.differentiating():
            return combine_batches([(1.0, port_traces(self, settings, 0))], settings)

    def graph(self) -> BatchGraph:
        """The graph of the batch at the present weights."""
        self.objective.follow()
        return self._current_graph()

    def _current_graph(self) -> BatchGraph:
        """The graph of the batch, which is rebuilt if the model has changed."""
        version = self.objective.state.version
        if self._graph is None or self._graph.version != version:
            self._graph = None  # frees the old graph before the new one is built
            with torch.inference_mode(False), self.objective.isolated():
                if self._ports_version != version:
                    self._follow_ports()
                self._graph = self._build_graph(version)
        return self._graph

    def _follow_ports(self) -> None:
        """Find the ports of a model that has changed, which must have the same names and shapes."""
        before = {n: x.shape for n, x in zip(self.names, self.layout.tensors, strict=True)}
        self._find_ports(self.objective)
        now = {port.name: port.shape for port in self.ports}
        if now != before:
            changed = [n for n in now.keys() | before.keys() if now.get(n) != before.get(n)]
            texts = [
                f"{n!r} {before.get(n, 'missing')}, now {now.get(n, 'missing')}" for n in changed
            ]
            self._ports_version = -1  # the next matvec compares again
            raise OperatorError(
                "the activations are no longer those that the operator was created for: "
                f"{'; '.join(sorted(texts)[:6])}. Create the operator again for the present model."
            )

    def outputs(self) -> Tensor:
        return output_tensor(self.graph().outputs)

    def linearized(self) -> Linearized:
        outputs = self.graph().outputs
        with torch.inference_mode(False), torch.enable_grad():
            matrix = loss_hessian(self.objective, self._batch, outputs)
            return Linearized.make(output_tensor(outputs), self.layout, matrix)

    def _build_graph(self, version: int) -> BatchGraph:
        deltas, batch, before = self.layout.tensors, self._batch, self._unperturbed_loss
        with fast_double_backward():
            outputs = perturbed_outputs(self.objective, batch, self.ports, deltas, self.at)
        value = self.objective.finite_value(outputs, batch.targets)
        if differ(before, value):
            again = loss_of_batch(self.objective, batch)
            require_reproducible(self.objective, batch, before, again)
            raise OperatorError(
                f"adding zero at the ports changes the loss from {float(before):.8g} to "
                f"{float(value.detach()):.8g}: a chosen module works in place on an input that "
                "others read afterwards. Set inplace=False for it, or pass at='output'."
            )
        if not value.requires_grad:
            raise OperatorError(
                "the loss does not depend on the ports in a differentiable way; are the outputs "
                "detached, or computed without the chosen modules?"
            )
        if has_custom_functions(value):
            checks.require_custom_functions(self.objective, batch)
        gradients = torch.autograd.grad(
            value, deltas, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return BatchGraph(version, outputs, dict(zip(self.names, gradients, strict=True)))

    def _apply_block(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        gradients = self._current_graph().gradients
        # A gradient that is constant in the perturbations contributes nothing.
        curved = [name for name in columns.names if gradients[name].requires_grad]
        Y = X.new_zeros((rows.size, X.shape[1]))
        if not curved:
            return Y
        for j, x in enumerate(X.T):
            v = dict(zip(columns.names, columns.unpack(x), strict=True))
            blocks = torch.autograd.grad(
                [gradients[name] for name in curved],
                rows.tensors,
                [v[name] for name in curved],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            Y[:, j] = rows.pack(blocks, self.dtype)
        return Y

    def __repr__(self) -> str:
        n, names = self.layout.size, ", ".join(self.names[:4])
        more = f" ... {self.names[-1]}" * (len(self.names) > 4)
        model = type(self.objective.model).__name__
        notes = "".join(f", {note}" for note in self._precision_note())
        return (
            f"<{n}x{n} activation Hessian of {model} in the {_PORT_NOUNS[self.at]} {names}{more}"
            f"{notes}, {self.dtype}>"
        )
