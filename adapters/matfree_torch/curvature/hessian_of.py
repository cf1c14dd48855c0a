"""The Hessian of any scalar function of named tensors, as a linear operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from matfree_torch.curvature.hessian import HessianOperator
from matfree_torch.curvature.over_batches import WeightDecay
from matfree_torch.hvp.strategies import Strategy
from matfree_torch.objective.model_calls import FunctionModule
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Patterns


def hessian_of(
    function: Callable[[dict[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    params: Patterns | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: Strategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
) -> HessianOperator:
    """The Hessian of any scalar function of named tensors.

    It is meant for losses that are not sums over batches of (inputs, targets): the residual of a
    differential equation, a penalty on the weights, or a training loss with several terms.

    Parameters
    ----------
    function : function (dict of tensors by name) -> scalar tensor
        It must compute its value from the tensors that it is given, not from those of a model;
        for a network, use ``torch.func.functional_call(model, tensors, inputs)``. It must be
        deterministic. Side effects, such as updates of running statistics, are not undone.
    parameters : mapping of names to tensors
        The point at which to differentiate, such as ``dict(model.named_parameters())``. The
        tensors are shared and left unchanged; the operator follows in-place training steps.
        Complex tensors count as real and imaginary parts, as for :func:`hessian`.
    params : str or sequence of str, optional
        Names of the tensors with respect to which to differentiate, or patterns; by default all
        that are real or complex.
    weight_decay : float or mapping of patterns to floats
    strategy : {"auto", "recompute", "forward", "folded", "finite-difference"}
    memory : int, optional
    allow_tf32 : bool
        As for :func:`hessian`.

    Returns
    -------
    HessianOperator
        Symmetric, on the tensors' device, in float32 or wider.

    Raises
    ------
    ValueError
        No tensor is selected.
    OperatorError
        The value of the function is not a scalar, or does not depend on the tensors.

    Cost
    ----
    Two evaluations of the function and its gradient, one to measure the graph and one to keep it;
    then a matvec takes the time of two to three gradients.

    References
    ----------
    B. A. Pearlmutter (1994), Fast exact multiplication by the Hessian,
    doi:10.1162/neco.1994.6.1.147.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import hessian_of
    >>> point = {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])}
    >>> hessian_of(lambda t: (t["x"] ** 2 * t["y"]).sum(), point).to_dense()
    tensor([[4., 2.],
            [2., 0.]])
    """
    # The function takes the place of the model, and the data are one batch without a meaning.
    model = FunctionModule(lambda tensors, _: function(tensors), parameters)
    dummy = torch.zeros(1)
    objective = Objective(model, lambda value, _: value, (dummy, dummy), allow_tf32=allow_tf32)
    return HessianOperator(objective, objective.parameters(params), weight_decay, strategy, memory)
