"""Traces of activation Hessians over one or several batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree import Estimate
from matfree.protocol import Seed
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.port_traces import (
    BatchTraces,
    PortTraceMethod,
    TraceSettings,
    combine_batches,
    port_traces,
)
from matfree_torch.activations.ports import Selection, Where
from matfree_torch.objective.batches import Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.objective import Objective


def activation_traces(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    modules: Selection,
    at: Where = "input",
    method: PortTraceMethod = "auto",
    num_probes: int = 32,
    seed: Seed = None,
    per_sample: bool = False,
    normalizer: Normalizer | None = None,
    batch: bool | None = None,
    process_group: ProcessGroup | None = None,
) -> dict[str, Estimate]:
    r"""The trace of the activation Hessian at every chosen module, over all of the data.

    .. math:: \operatorname{tr} A_{ll} = \sum_b c_b \operatorname{tr} A_{ll}^{(b)}

    for every port l, where :math:`c_b` is the weight that the loss gives to batch b.

    Parameters
    ----------
    model, loss, modules, at
        As for :func:`activation_hessian`.
    data, normalizer, batch
        As for :func:`hessian`: one batch or several.
    method : {"auto", "exact", "probes", "gauss-newton"}
        "exact": :math:`\sum_c \|J^T s_c\|^2`, the trace of the Gauss-Newton matrix, after one
        matvec with each has shown that it equals the Hessian; an error if it does not.
        "probes": the Hutchinson estimate from separate probes for every port, because a joint
        probe for all ports is cheaper but much noisier. "auto": for each port "exact" if it
        applies and takes no more passes than probes would, otherwise "probes".
        "gauss-newton": the exact trace of the Gauss-Newton matrix, whether or not it equals
        the Hessian.
    num_probes : int
        Probes per port and batch.
    seed : int, None or numpy.random.Generator
    per_sample : bool
        Return one value per sample, in the order of the data: the contribution of the entries
        that belong to the sample. The values add up to the trace. For a mean over N samples,
        N times a contribution is the trace of the sample's own loss.
    process_group : torch.distributed.ProcessGroup, optional
        As for :func:`hessian`: each process calls this function with its own shard of the
        data, and the result is over all of the data. Probes and samples are indexed as if the
        shards were concatenated in the order of the ranks.

    Returns
    -------
    dict of name to Estimate
        ``method`` is "exact", "gauss-newton" or "hutchinson". ``reason`` explains the choice
        and names the kind of port. With ``per_sample`` the values are float64 arrays of shape
        (samples,).

    Raises
    ------
    OperatorError
        "exact" was requested and the Hessian is not its Gauss-Newton matrix. ``per_sample``
        was requested and samples mix (batch statistics in training mode), or the first axis
        does not count samples.
    ValueError
        An argument is out of range, or as for :func:`hessian`.

    Cost
    ----
    Per batch two forward passes, one gradient, and about ten matvecs and backward passes that
    examine the operator. Then "exact" takes one backward pass per class (or two per output, if
    the loss has no closed form), times the number of positions if targets have positions, times
    the number of samples if samples mix; "probes" takes num_probes matvecs per port.

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
    TraceSettings.make(method, num_probes, 0, per_sample)  # fails before anything is computed
    model, objective = build_objective(
        model, loss, data, normalizer, batch=batch, process_group=process_group
    )
    objective.require_unsharded("an activation trace")
    settings = TraceSettings.make(method, num_probes, objective.agreed_seed(seed), per_sample)
    first = objective.number_samples()

    def local_traces() -> BatchTraces:
        batches: BatchTraces = []
        with objective.isolated():
            for index, one in enumerate(objective.batches, start=first):
                single = Objective(model, loss, one.raw, normalizer, batch=True)
                A = ActivationHessian(single, modules, at)
                batches.append((one.weight, port_traces(A, settings, index)))
        return batches

    batches = objective.gather_items(local_traces)
    divisor = sum(weight for weight, _ in batches) if objective.batches.averaged else 1.0
    return combine_batches([(weight / divisor, traces) for weight, traces in batches], settings)
