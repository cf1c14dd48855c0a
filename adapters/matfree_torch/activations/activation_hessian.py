r"""Activation Hessians of one batch, in one process or distributed over several.

If samples do not interact, the Hessian has no entries between them. For samples distributed
over several processes, the joint operator is therefore block diagonal,

.. math:: A = \operatorname{diag}(c_1 A_1, c_2 A_2, \dots), \qquad
   c_r = \frac{w_r}{\sum_s w_s},

where :math:`A_r` is the operator of the mean over the samples of process r, and :math:`w_r` is
what this mean divides by. A matvec needs no rows of other processes. Only inner products
communicate.
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
    batch: bool | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> ActivationHessian | SharedActivationHessian:
    r"""The joint Hessian of a batch's loss with respect to the activations of several modules.

    A zero :math:`\delta_l` is added to the input or the output of every chosen module, and

    .. math:: A_{lm} = \frac{\partial^2 L}{\partial \delta_l \, \partial \delta_m}.

    Parameters
    ----------
    model, loss, batch, allow_tf32
        As for :func:`hessian`.
    data : one batch
        Perturbations belong to samples, so the operator is that of one batch. For several
        batches, :func:`activation_traces` adds up their traces.
    modules : type, tuple of types, name or pattern, sequence of them, or function
        The modules, for example ``nn.Conv2d``, ``"layer1.*"`` or
        ``lambda name, module: "attention" in name``.
    at : {"input", "output", "tensor"}
        The port of a call of a module. "input": the input of the module, as seen by this
        module only. "output": its output. "tensor": the tensor that the module reads, as seen
        by all of its readers, for example a skip connection. The kinds differ where a tensor
        has several readers. If a call has several arguments or results, the port is the first
        floating-point tensor.
    process_group : torch.distributed.ProcessGroup, optional
        The processes that share the batch. Each calls this function with its own samples, of
        which there must be at least one. The loss and the operator are those of all samples.
        Every process holds the rows of a vector that belong to its own samples.

    Returns
    -------
    ActivationHessian, or SharedActivationHessian with a process_group
        A symmetric operator with one port per call of a module, in the order of the calls.
        ``partition`` and ``block`` use the names of the modules, followed by ``#0``, ``#1`` ...
        if a module is called more than once.

    Raises
    ------
    ValueError
        No module is chosen or called, or a layer draws random numbers in its present mode.
    OperatorError
        There are several batches. A port is not a floating-point tensor or cannot be reached.
        Adding zero at the ports changes the loss, because a module works in place on an input
        that others read. The loss does not depend on the ports. With a process_group: another
        process failed, or has other weights or ports.
    LostProcessError
        A process died, or did not take part within the timeout of the group.

    Cost
    ----
    Two forward passes and one gradient, whose graph is stored. A matvec then takes two to three
    times as long as a gradient. The length of a vector is the number of activations at all
    ports. With a process_group each process computes with its own samples, and a matvec
    communicates a few numbers, whatever its size.

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
    >>> weight = model[2].weight.detach()  # behind port 2 all is linear: w w^T 2 / 4 per sample
    >>> bool(torch.isclose(torch.tensor(A.traces()["2"].value), 2 * (weight**2).sum()))
    True
    """
    model, objective = build_objective(
        model,
        loss,
        data,
        None,
        batch=batch,
        allow_tf32=allow_tf32,
        process_group=process_group,
    )
    objective.require_unsharded("an activation Hessian")
    if not objective.batches.single:
        raise OperatorError(
            "an activation Hessian is over one batch, because perturbations belong to samples: "
            "pass one batch, next(iter(loader)), or add up the traces of all batches with "
            "activation_traces(model, loss, loader, modules=...)."
        )
    if objective.communicator is None:
        return ActivationHessian(objective, modules, at)
    return SharedActivationHessian(objective, objective.communicator, modules, at)
