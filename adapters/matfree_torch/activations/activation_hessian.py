"""Activation Hessians of one batch, held by this process or shared out among several.

Samples that do not act on one another have no curvature in common: over samples that
processes share out, the joint operator is block diagonal,

    A = diag(c_1 A_1, c_2 A_2, ...),      c_r = weight_r / sum_s weight_s,

with A_r that of the mean over the samples of process r. So a product needs no vector of another
process; only what is summed over rows does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree import OperatorError
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.ports import Selection, Where
from matfree_torch.activations.shared_operator import SharedActivationHessian
from matfree_torch.objective.build import build_objective


def activation_hessian(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    modules: Selection,
    at: Where = "input",
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> ActivationHessian | SharedActivationHessian:
    """The Hessian of a batch's loss with respect to activations, one joint operator.

    d^2 L / d delta^2 for zeros delta added to the inputs or outputs of modules.

    Parameters
    ----------
    model, loss, allow_tf32
        As for :func:`hessian`.
    data : one batch
        Perturbations belong to samples, so the operator is over one batch; for several,
        :func:`activation_traces` adds the traces up.
    modules : type, tuple of types, name or pattern, sequence of them, or function
        Which modules: ``nn.Conv2d``; ``"layer1.*"``; ``lambda name, module: ...``.
    at : {"input", "output", "tensor"}
        Where a call's port is. "input": the module's input, as this module alone reads it.
        "output": its output. "tensor": the tensor it reads, with everything else that reads
        it, a skip connection for one. They differ wherever a tensor has several readers. Of
        several arguments or results it is the first floating point tensor.
    process_group : torch.distributed.ProcessGroup, optional
        The processes that share the batch out, each calling this with its own samples, at
        least one. The loss is that of all of them, and so is the operator; every process holds
        the rows of a vector that belong to its own samples.

    Returns
    -------
    ActivationHessian, or SharedActivationHessian with a process_group
        Symmetric, one port per call of a module, in the order of the calls; ``partition``
        and ``block`` go by the modules' names, with ``#0``, ``#1`` ... where one is called
        more than once.

    Raises
    ------
    ValueError
        No module is chosen or called, or a layer draws random numbers in its present mode.
    OperatorError
        There are several batches; a port is no floating point tensor, is out of reach, or
        adding zero at the ports changes the loss (a module that works in place on an input
        that others read); the loss does not depend on the ports. With a process_group: another
        process failed, or has other weights or ports.
    LostProcessError
        A process died, or did not take part within the group's timeout.

    Cost
    ----
    Two forwards and a gradient, whose graph is kept; then two to three gradients' time a product. A
    vector is as long as all the ports' activations together. With a process_group each process
    pays for its own samples, and a product sends some numbers, whatever its size.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import activation_hessian
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    >>> data = torch.ones(4, 2), torch.zeros(4, 1)
    >>> A = activation_hessian(model, torch.nn.MSELoss(), data, modules=torch.nn.Linear)
    >>> A.partition
    {'0': slice(0, 8, None), '2': slice(8, 20, None)}
    >>> A.block("0", "2").shape
    (8, 12)
    >>> weight = model[2].weight.detach()  # the last layer is linear: 2 / 4 of w^T w a sample
    >>> bool(torch.isclose(torch.tensor(A.traces()["2"].value), 2 * (weight**2).sum()))
    True
    """
    model, objective = build_objective(
        model, loss, data, None, allow_tf32=allow_tf32, process_group=process_group
    )
    objective.require_unsharded("an activation Hessian")
    if not objective.batches.single:
        raise OperatorError(
            "an activation Hessian is over one batch, because perturbations belong to samples: "
            "pass one batch, next(iter(loader)), or add the traces of all batches up with "
            "activation_traces(model, loss, loader, modules=...)."
        )
    if objective.communicator is None:
        return ActivationHessian(objective, modules, at)
    return SharedActivationHessian(objective, objective.communicator, modules, at)
