"""The traces of activation Hessians over one batch or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree import Estimate
from matfree.protocol import Seed
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.port_traces import (
    PortTrace,
    Settings,
    TraceMethod,
    port_traces,
    summed,
)
from matfree_torch.activations.ports import Selection, Where
from matfree_torch.objective.batches import Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.objective import Objective

Parts: TypeAlias = list[tuple[float, dict[str, PortTrace]]]
"""Batches' weights and their traces."""


def activation_traces(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    modules: Selection,
    at: Where = "input",
    method: TraceMethod = "auto",
    num_probes: int = 32,
    seed: Seed = None,
    per_sample: bool = False,
    normalizer: Normalizer | None = None,
    process_group: ProcessGroup | None = None,
) -> dict[str, Estimate]:
    r"""The trace of the activation Hessian of every chosen module, over all of the data.

    tr A[l, l] for every port l, added up over batches with the loss's own weights.

    Parameters
    ----------
    model, loss, modules, at
        As for :func:`activation_hessian`.
    data, normalizer
        As for :func:`hessian`: one batch, or several.
    method : {"auto", "exact", "probes", "gauss-newton"}
        "exact": sum_c ||J^T s_c||^2, the trace of the Gauss-Newton matrix, after one product of
        each has shown that it equals the Hessian; an error where it does not. "probes":
        Hutchinson's estimate from probes on each port by itself; one probe across all ports
        is cheaper and much noisier. "auto": for each port the first where it holds and costs
        no more passes than probes would, else the second. "gauss-newton": the exact trace of
        the Gauss-Newton matrix, whether or not it is the Hessian.
    num_probes : int
        Probes a port, and a batch.
    seed : int, None or numpy.random.Generator
    per_sample : bool
        One value a sample, in the order of the data: what the entries that belong to it
        contribute. They add up to the trace; for a mean over N samples, N times the
        contribution is the trace of the sample's own loss.
    process_group : torch.distributed.ProcessGroup, optional
        As for :func:`hessian`: each process calls this with its own part of the data, and gets
        the traces over all of it. Probes and samples are numbered as if the parts lay end to
        end in the order of the processes.

    Returns
    -------
    dict of name to Estimate
        ``method`` is "exact", "gauss-newton" or "hutchinson"; ``reason`` says why, and where
        the ports are. With ``per_sample`` the values are (samples,) float64 arrays.

    Raises
    ------
    OperatorError
        "exact" where the Hessian is not its Gauss-Newton matrix; ``per_sample`` where samples
        mix (batch statistics in training mode), or the first axis does not count them.
    ValueError
        An argument is out of range, or as for :func:`hessian`.

    Cost
    ----
    A batch: two forwards, a gradient, and some ten products and passes that look at the
    operator; then "exact": one backward pass for each class (for each output where the loss
    has no closed form, twice), times positions where targets have some, times samples where
    samples mix; "probes": num_probes products a port.

    References
    ----------
    Z. Dong, Z. Yao, D. Arfeen, A. Gholami, M. W. Mahoney, K. Keutzer (2020), HAWQ-V2: Hessian
    aware trace-weighted quantization of neural networks, arXiv:1911.03852.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import activation_traces
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> data = [(torch.ones(3, 2), torch.tensor([0, 1, 1])), (torch.ones(1, 2), torch.tensor([0]))]
    >>> traces = activation_traces(model, torch.nn.CrossEntropyLoss(), data, modules="*")
    >>> [(name, trace.method) for name, trace in traces.items()]
    [('0', 'exact'), ('1', 'exact'), ('2', 'exact')]
    """
    Settings.make(method, num_probes, 0, per_sample)  # refuses before anything is computed
    model, objective = build_objective(model, loss, data, normalizer, process_group=process_group)
    objective.require_unsharded("an activation trace")
    settings = Settings.make(method, num_probes, objective.agreed_seed(seed), per_sample)
    before = objective.number_samples()

    def traced() -> Parts:
        parts: Parts = []
        with objective.isolated():
            for number, batch in enumerate(objective.batches, start=before):
                whole = isinstance(batch.targets, Mapping)
                raw = batch.targets if whole else (batch.inputs, batch.targets)
                A = ActivationHessian(Objective(model, loss, raw, normalizer), modules, at)
                parts.append((batch.weight, port_traces(A, settings, number)))
        return parts

    parts = objective.gather_items(traced)
    divisor = sum(weight for weight, _ in parts) if objective.batches.averaged else 1.0
    return summed([(weight / divisor, part) for weight, part in parts], settings)
