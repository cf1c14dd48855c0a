r"""The Hessian of a loss with respect to a network's parameters, as an operator.

A product H v is the derivative of <gradient, v>, taken by differentiating the gradient's own
graph backwards: reverse over reverse, the composition that every differentiable operation
of torch supports and gets right. Others look shorter and are not to be trusted: with
``jacrev`` inside (``torch.func.hessian`` is built so) or reverse over forward, torch 2.13
silently drops terms of layer and batch normalisation, some 6 % of the Hessian of a small
network with LayerNorm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree_torch.curvature.over_batches import ParameterCurvature, WeightDecay
from matfree_torch.hvp.select import products_by
from matfree_torch.hvp.strategies import Strategy
from matfree_torch.objective.batches import Batch, Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.model_calls import FunctionModule
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Parameters, Patterns


def hessian(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: Strategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> HessianOperator:
    """The Hessian of a loss over data with respect to the flat vector of parameters.

    Parameters
    ----------
    model : nn.Module
        Used in the mode it is in, and left as it was found: gradients, buffers, hooks,
        modes and the global random state. It may be cut up by tensor parallelism (DTensors) or
        ``fully_shard``: each process then has those rows of vectors that ``H.space.rows`` says.
    loss : function (outputs, targets) -> scalar tensor, or None
        A loss module's ``reduction`` says how batches add up: "sum", or "mean" over what the
        loss itself counts (samples, elements, class weights, targets that are not ignored).
        A plain function is taken for a mean over samples. None takes the loss that the model
        returns as ``outputs.loss``, as Hugging Face's do. Torch's own losses take
        ``outputs.logits`` where the outputs are no tensor.
    data : a batch, or a re-iterable of batches
        A batch is (inputs, targets): inputs is a tensor, a tuple that is unpacked into the
        model's arguments, or a mapping that is unpacked into its keyword arguments. Or it is
        one mapping: it goes into the model whole, and into the loss as targets. A DataLoader
        must show the same samples every time.
    params : str or sequence of str, optional
        Names of the parameters to take, ``"layer1.*"``; all that require gradients by
        default. A subset gives the principal submatrix.
    normalizer : function, optional
        From a batch to the number that the loss divides its sum by, for averaging losses
        of your own.
    weight_decay : float or mapping of patterns to floats
        lambda of a term lambda / 2 ||theta||^2 beside the loss: lambda I is added on these
        parameters, ``{"*.weight": 1e-4}``.
    strategy : {"auto", "recompute", "forward", "folded", "finite-difference"}
        How products are computed; the first four agree to rounding.

        "auto"
            Double backward. The gradient's graph is kept for as many batches as fit into
            ``memory``, and made again for the others, once a block of products.
        "recompute"
            The same with nothing kept between blocks.
        "forward"
            The gradient's derivative in forward mode, from the beginning for every product.
            Fewer operations can do it.
        "folded"
            The same, traced once a batch, with everything but the vector computed away. The
            trace takes some seconds, and half as much memory again as a graph; a product of a
            convolutional network then takes a tenth to a sixth less time. On a GPU it is
            captured in a CUDA graph. Fewest operations can do it, and branches on values are
            those taken at these weights.
        "finite-difference"
            Central differences of gradients, for operations without any second derivative:
            right to about eps^(2/3), and wrong where the gradient jumps (ReLU).
    memory : int, optional
        Bytes that may be kept between products, for "auto" and "folded"; half of what is free
        by default. It changes no number. ``H.memory`` says what is taken.
    allow_tf32 : bool
        Whether torch's own settings decide if a GPU rounds the factors of float32 products to
        ten bits. By default it never does here. ``H.noise`` shows what that costs.
    process_group : torch.distributed.ProcessGroup, optional
        The processes that share the data out, each calling this with its own part of it and
        everything else the same; ``torch.distributed.group.WORLD`` for all. Every product is
        then summed over them, weighted by what the loss counts in all processes together, and
        every process holds the same result. A part may be empty. Where vectors are too long for
        a process, see ``sharded``.

    Returns
    -------
    HessianOperator
        Symmetric, on the parameters' device, float32 at least.

    Raises
    ------
    ValueError
        No parameter is left, a layer draws random numbers in its present mode, two passes
        over the data differ, or there is no such strategy.
    TypeError
        The data can be gone through only once, or holds no batches.
    OperatorError
        The loss is not a scalar, or torch has no right second derivative of some module: the
        first product looks at |u^T H w - w^T H u|, and the error names the module. Or the
        strategy does not cover an operation.
        With a process_group: the processes disagree about weights, vectors or arguments, or
        another one failed.
    LostProcessError
        A process died, or did not take part within the group's timeout.
    MemoryError
        One batch's graph, or the whole parameters of a fully sharded model, would take all
        memory that is free; or what is folded more than ``memory``.

    Warns
    -----
    UserWarning
        Several batches go through a layer with statistics of the batch; or the operator is
        asymmetric beyond rounding though no module is wrong, where the curvature is tiny; or
        finite differences are taken of something with kinks; or the model is wrapped for data
        parallel training and no process_group is given.

    Cost
    ----
    "auto": a forward and a gradient for each batch, twice for the first one, whose graph is
    measured; then two to three gradients' time a product. Where graphs do not fit, a forward
    and a gradient per batch and block of products, shared by the whole block. "forward" takes
    three to five gradients' time a product, "folded" two, "finite-difference" two. The first
    block carries two products more, in half precision three. Data whose graphs are all kept
    are read twice, the second time only to see that they are the same.

    References
    ----------
    B. A. Pearlmutter (1994), Fast exact multiplication by the Hessian,
    doi:10.1162/neco.1994.6.1.147.

    Examples
    --------
    >>> import matfree as mf, torch
    >>> from matfree_torch import hessian
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> H = hessian(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1)))  # 2 x^T x / 2
    >>> H.to_dense()
    tensor([[1., 0.],
            [0., 4.]])
    """
    _, objective = build_objective(
        model,
        loss,
        data,
        normalizer,
        allow_tf32=allow_tf32,
        process_group=process_group,
        differences=strategy == "finite-difference",
    )
    return HessianOperator(objective, objective.parameters(params), weight_decay, strategy, memory)


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

    For losses that are no sum over batches of (inputs, targets): the residual of a
    differential equation, a penalty on weights, a training loss with several terms.

    Parameters
    ----------
    function : function (dict of tensors by name) -> scalar tensor
        Computed from the tensors it is given, not from a model's own: for a network,
        ``torch.func.functional_call(model, tensors, inputs)``. It must be deterministic; what
        else it changes, such as running statistics, stays changed.
    parameters : mapping of names to tensors
        The point, ``dict(model.named_parameters())`` for one. They are shared, not copied, so
        that a training step in place is noticed; left as they are.
    params : str or sequence of str, optional
        Names or patterns: which of them to differentiate by; all floating point ones.
    weight_decay : float or mapping of patterns to floats
    strategy : {"auto", "recompute", "forward", "folded", "finite-difference"}
    memory : int, optional
    allow_tf32 : bool
        As for :func:`hessian`.

    Returns
    -------
    HessianOperator
        Symmetric, on the tensors' device, float32 at least.

    Raises
    ------
    ValueError
        No tensor is left.
    OperatorError
        The function's value is not a scalar, or does not depend on the tensors.

    Cost
    ----
    Two calls of the function and its gradient, once to measure the graph and once to keep it;
    then two to three gradients' time a product.

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
    model = FunctionModule(function, parameters)
    nothing = torch.zeros(1)
    objective = Objective(model, lambda value, _: value, (nothing, nothing), allow_tf32=allow_tf32)
    return HessianOperator(objective, objective.parameters(params), weight_decay, strategy, memory)


@final
class HessianOperator(ParameterCurvature):
    """The Hessian of a loss; made by :func:`hessian` and :func:`hessian_of`.

    Examples
    --------
    >>> import torch, matfree_torch
    >>> model, data = torch.nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1))
    >>> H = matfree_torch.hessian(model, torch.nn.MSELoss(), data)
    >>> {name: tuple(piece.shape) for name, piece in H.unflatten(H.gradient()).items()}
    {'weight': (1, 2), 'bias': (1,)}
    """

    title = "Hessian"

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay,
        strategy: Strategy,
        memory: int | None,
    ) -> None:
        self._products = products_by(strategy, objective, parameters, memory)
        super().__init__(objective, parameters, weight_decay, strategy, self._products.retention)

    def _prepare(self, batch: Batch) -> Any:
        return self._products.prepare(batch)

    def _multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        return self._products.multiply(prepared, v, rows)

    def _refuse_asymmetry(self, defect: float) -> None:
        if self.strategy != "finite-difference":
            super()._refuse_asymmetry(defect)
            return
        warnings.warn(
            f"the finite differences are asymmetric by {defect:.1e} of a product's size: the "
            "gradient is not smooth on the scale of a step, or the curvature is tiny; take "
            "strategy='auto'.",
            UserWarning,
            stacklevel=8,
        )
