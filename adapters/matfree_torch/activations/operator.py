r"""The Hessian of a loss with respect to what flows through a network.

At every port a perturbation is added that is zero, a_l + delta_l, and the loss is
differentiated twice by the perturbations:

    A = d^2 L / d delta^2,      A[l, m] = d^2 L / d delta_l d delta_m.

This is a Hessian, symmetric, through residual branches, in-place activations and modules
called more than once. Differentiating instead what a module's backward hook hands out, as is
often done, gives neither: the hook's gradient depends on the activation through every path,
and differentiating it by the tensor that a forward hook captured follows some of them only.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from matfree import OperatorError
from matfree.protocol import Seed
from matfree.results import Estimate
from matfree_torch.activations import ports
from matfree_torch.activations.port_traces import Settings, TraceMethod, port_traces, summed
from matfree_torch.activations.ports import Selection, Where
from matfree_torch.autograd.convolutions import fast_double_backward
from matfree_torch.curvature.gauss_newton import Linearized, output_hessian
from matfree_torch.curvature.operator import CurvatureOperator
from matfree_torch.objective import isolation
from matfree_torch.objective.model_calls import output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout

_READS = {"input": "inputs", "output": "outputs", "tensor": "tensors read by"}


class Prepared(NamedTuple):
    """The graph of one batch: outputs, and the loss's gradient in every perturbation."""

    version_counters: Any
    outputs: Any
    gradients: dict[str, Tensor]


@final
class ActivationHessian(CurvatureOperator):
    """The Hessian of a loss in activations; made by :func:`activation_hessian`.

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
        if at not in _READS:
            raise ValueError(f"at must be 'input', 'output' or 'tensor': got {at!r}.")
        chosen = ports.choose(objective.model, modules)
        with objective.isolated():
            (batch,) = objective.batches
            self.ports, self._plain_loss = ports.find(objective, batch, chosen, at)
            deltas = {port.name: port.zeros() for port in self.ports}
        super().__init__(objective, Layout(deltas, "port"))
        self.at, self._batch = at, batch
        self._found_at = isolation.version_counters(objective.model)
        self._kept: Prepared | None = None

    def traces(
        self,
        method: TraceMethod = "auto",
        *,
        num_probes: int = 32,
        seed: Seed = None,
        per_sample: bool = False,
    ) -> dict[str, Estimate]:
        """The trace of every port's diagonal block.

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
        As for :func:`activation_traces`; the graph is shared with the operator's products.
        """
        settings = Settings.make(method, num_probes, seed, per_sample)
        with self.objective.precision():
            return summed([(1.0, port_traces(self, settings, 0))], settings)

    def graph(self) -> Prepared:
        """The batch's graph, made anew where the model has changed."""
        now = isolation.version_counters(self.objective.model)
        if self._kept is None or self._kept.version_counters != now:
            self._kept = None
            with torch.inference_mode(False), self.objective.isolated():
                self._kept = self._prepare(now)
        return self._kept

    def linearized(self) -> Linearized:
        """The network from the ports to its outputs, with the loss's Hessian in these."""
        outputs = self.graph().outputs
        with torch.inference_mode(False), torch.enable_grad():
            matrix = output_hessian(self.objective, self._batch, outputs)
            return Linearized.make(output_tensor(outputs), self.layout, matrix)

    def _prepare(self, version_counters: Any) -> Prepared:
        deltas, batch = self.layout.tensors, self._batch
        with fast_double_backward():
            outputs = ports.perturbed(self.objective, batch, self.ports, deltas, self.at)
        value = self.objective.value(outputs, batch.targets)
        before, after = float(self._plain_loss), float(value.detach())
        rounding = 100 * torch.finfo(value.dtype).eps * abs(before)
        if version_counters == self._found_at and abs(after - before) > rounding:
            raise OperatorError(
                f"adding zero at the ports changes the loss from {before:.8g} to {after:.8g}: a "
                "chosen module works in place on an input that others read afterwards. Give it "
                "inplace=False, or take at='output'."
            )
        if not value.requires_grad:
            raise OperatorError("the loss does not depend on the ports in a differentiable way.")
        gradients = torch.autograd.grad(
            value, deltas, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return Prepared(version_counters, outputs, dict(zip(self.names, gradients, strict=True)))

    def _between(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        gradients = self.graph().gradients
        curved = [name for name in columns.names if gradients[name].requires_grad]
        Y = X.new_zeros((rows.size, X.shape[1]))
        if not curved:
            return Y
        for j, x in enumerate(X.T):
            v = dict(zip(columns.names, columns.unpack(x), strict=True))
            pieces = torch.autograd.grad(
                [gradients[name] for name in curved],
                rows.tensors,
                [v[name] for name in curved],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            Y[:, j] = rows.pack(pieces, self.dtype)
        return Y

    def __repr__(self) -> str:
        n, names = self.layout.size, ", ".join(self.names[:4])
        more = f" ... {self.names[-1]}" * (len(self.names) > 4)
        model = type(self.objective.model).__name__
        notes = "".join(f", {note}" for note in self._precision_note())
        return (
            f"<{n}x{n} activation Hessian of {model} in the {_READS[self.at]} {names}{more}"
            f"{notes}, {self.dtype}>"
        )
