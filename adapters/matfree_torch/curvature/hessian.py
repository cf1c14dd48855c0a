r"""The Hessian of a loss with respect to a network's parameters, as a linear operator.

A matvec is the derivative of the inner product of the gradient with v,

.. math::

    H v = \nabla_\theta \, \langle \nabla_\theta L(\theta), v \rangle,

computed by differentiating the graph of the gradient backward (reverse over reverse), which most
operations of torch support; the first matvec checks its symmetry. Forward over reverse is correct,
too, but in reverse over forward, and with ``jacrev`` as in ``torch.func.hessian``, torch 2.13 drops
terms of layer and batch normalization: 6 % of the Hessian of a small network with LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree.errors import warn
from matfree_torch.curvature.over_batches import ParameterCurvature, WeightDecay
from matfree_torch.derivative_checks import checks
from matfree_torch.hvp.select import make_strategy
from matfree_torch.hvp.strategies import Strategy
from matfree_torch.objective.batches import Batch, Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Patterns
from matfree_torch.vectors.parameters import Parameters


def hessian(
    model: nn.Module | Callable[..., Any],
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    batch: bool | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: Strategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> HessianOperator:
    """The Hessian of a loss over data with respect to the flat vector of parameters.

    Parameters
    ----------
    model : nn.Module, or function (dict of tensors by name, inputs) -> outputs
        A function is written as for ``torch.func``, and ``params`` are its tensors. A module is
        used in its present mode (training or evaluation) and left unchanged: gradients, buffers,
        hooks, modes and the global random state. Its parameters may be sharded by tensor
        parallelism or ``fully_shard``; each process then holds rows ``H.space.rows``.
    loss : function (outputs, targets) -> scalar tensor, or None
        Batches are added if ``loss.reduction`` is "sum". Otherwise they are averaged, weighted
        by the loss's denominator (the number of samples or elements, or the sum of class weights,
        without ignored targets), which is observed for custom losses. It may also depend on
        parameters directly, as a penalty does. None stands for ``outputs.loss``, computed by the
        model. If the outputs are not a tensor, torch's own losses get ``outputs.logits``.
    data : a batch, or a re-iterable of batches
        A batch is a pair (inputs, targets). If the signature of the model allows it, inputs that
        are a tuple are unpacked into its arguments, and a mapping into its keyword arguments. A
        list is unpacked if it holds several inputs, as DataLoaders collate them, but not if it
        holds one item per sample. Any other object is one argument. Targets may be any object. A
        batch may also be one mapping or one object, such as a graph, that is passed to the model
        as inputs and to the loss as targets. Every pass must yield the same samples.
    params : str or sequence of str, optional; mapping of names to tensors for a function
        Names of the parameters to include, or patterns such as ``"layer1.*"``; by default all
        that require gradients. A subset yields the principal submatrix. A complex parameter
        counts as real numbers: the real and the imaginary part of its first entry, then those
        of its second, as in ``torch.view_as_real``.
    normalizer : function, optional
        Maps a batch to the number by which the loss divides its sum, if that is not recognized.
    batch : bool, optional
        Whether ``data`` is one batch, if its structure does not decide.
    weight_decay : float or mapping of patterns to floats
        The lambda of a term lambda / 2 ||theta||^2 that is added to the loss. It adds lambda I
        to the Hessian for these parameters, such as ``{"*.weight": 1e-4}``.
    strategy : {"auto", "recompute", "forward", "folded", "finite-difference"}
        How matvecs are computed. The first four agree up to rounding.

        "auto"
            Double backward. The graph of the gradient is kept for as many batches as fit into
            ``memory``. For the other batches it is rebuilt once for every block of vectors.
        "recompute"
            Double backward with nothing kept between blocks.
        "forward"
            The derivative of the gradient in forward mode. It reruns the forward pass in every
            matvec, and fewer operations have forward-mode rules.
        "folded"
            The same, traced once for each batch and constant-folded: all that does not depend on
            the vector is evaluated in advance. Tracing takes seconds, and the constants 1.5 times
            the memory of a graph. A matvec with a convolutional network then takes 10 to 17 % less
            time. On a GPU it is captured in a CUDA graph. The fewest operations support it, and
            branches that depend on values are fixed to those taken at these weights.
        "finite-difference"
            Central differences of gradients, for operations without second derivatives. The
            relative error is about eps^(2/3), and much larger if the gradient jumps (ReLU).
    memory : int, optional
        Bytes that may be kept between matvecs, for "auto" and "folded"; half of the free memory
        by default. It does not affect the results. ``H.memory`` reports the actual use.
    allow_tf32 : bool
        If True, torch's settings determine whether a GPU uses TF32 (mantissas of 10 bits) for
        the factors of float32 matrix products. By default it does not. ``H.noise`` shows the
        resulting error.
    process_group : torch.distributed.ProcessGroup, optional
        The processes over which the data are distributed;
        ``torch.distributed.group.WORLD`` for all. Each process calls this function with its own
        shard of the data, which may be empty, and otherwise the same arguments. Every matvec
        ends with an all-reduce, weighted by each process's denominator of the loss, and all
        processes hold the same result. If vectors are too long for one process, see the method
        ``sharded``.

    Returns
    -------
    HessianOperator
        Symmetric, on the parameters' device, in float32 or wider.

    Raises
    ------
    ValueError
        No parameter is selected, a layer draws random numbers in its present mode, two passes
        over the data differ, there is no such strategy, or ``batch`` or ``normalizer`` is needed.
    TypeError
        The data can be iterated over only once, or contain no batches.
    OperatorError
        The loss is not a scalar, or the strategy does not support an operation. The first matvec
        also checks the symmetry |u^T H w - w^T H u|; if torch computes a second derivative
        wrongly, the error names the module. With a process_group: the processes have different
        weights, vectors or arguments, or another process failed.
    LostProcessError
        A process died, or did not respond within the timeout of the group.
    MemoryError
        The graph of one batch, or the whole parameters of a fully sharded model, would not fit
        into the free memory, or the folded programs would not fit into ``memory``.

    Warns
    -----
    UserWarning
        Several batches pass through a layer that uses batch statistics; the operator is
        asymmetric beyond rounding but no module is faulty, as happens if the curvature is tiny;
        finite differences are used on a model with kinks; or the model is wrapped for
        data-parallel training and no process_group is given.

    Cost
    ----
    "auto": one forward pass and one gradient for each batch, twice for the first batch, whose
    graph is measured; then a matvec takes the time of two to three gradients. Batches whose
    graphs do not fit take a forward pass and a gradient for every block of vectors. A matvec with
    "forward" takes the time of three to five gradients, with "folded" or "finite-difference" of
    two. The first block has two additional vectors (three in half precision), which test
    the symmetry. If all graphs are
    kept, the data are read twice; the second pass only checks that they are the same.

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
        batch=batch,
        allow_tf32=allow_tf32,
        process_group=process_group,
        params=params,
        differences=strategy == "finite-difference",
    )
    return HessianOperator(objective, objective.parameters(params), weight_decay, strategy, memory)


@final
class HessianOperator(ParameterCurvature):
    """The Hessian of a loss, returned by :func:`hessian` and :func:`hessian_of`.

    Examples
    --------
    >>> import torch, matfree_torch
    >>> model, data = torch.nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1))
    >>> H = matfree_torch.hessian(model, torch.nn.MSELoss(), data)
    >>> {name: tuple(x.shape) for name, x in H.unflatten(H.gradient()).items()}
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
        self._hvp = make_strategy(strategy, objective, parameters, memory)
        super().__init__(objective, parameters, weight_decay, strategy, self._hvp.cache_policy)
        itself = "H v is itself a difference of gradients"
        self._derivative_check = itself if strategy == "finite-difference" else checks.NO_BATCH

    @property
    def derivative_check(self) -> str:
        """How H v was compared with differences of gradients in the first matvec, as a sentence.

        It says how well they agree, or why they could not be compared, for example because the
        gradient jumps (ReLU) and the network is not in double precision. A wrong second
        derivative is an OperatorError. The first matvec is computed now, unless an earlier one
        was.

        Examples
        --------
        >>> import torch
        >>> from matfree_torch import hessian
        >>> model, data = torch.nn.Linear(2, 1), (torch.eye(2), torch.ones(2, 1))
        >>> hessian(model, lambda z, y: (z - y).pow(2).mean(), data).derivative_check[:44]
        'H v agrees with a difference of gradients to'
        """
        self.inspect()
        return self._derivative_check

    def _prepare(self, batch: Batch) -> Any:
        return self._hvp.prepare(batch)

    def _multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        return self._hvp.multiply(prepared, v, rows)

    def _verify(self, batch: Batch, prepared: Any, v: dict[str, Tensor], product: Tensor) -> None:
        if self.strategy != "finite-difference":
            self._derivative_check = checks.require_hessian_vector_product(
                self.objective, batch, self.layout, v, product, self._eps()
            )

    def _report_asymmetry(self, defect: float) -> None:
        if self.strategy != "finite-difference":
            super()._report_asymmetry(defect)
            return
        warn(
            f"the finite differences are asymmetric by {defect:.1e}, relative to the norm of a "
            "matvec: the gradient is not smooth on the scale of the step, or the curvature is "
            "tiny; pass strategy='auto'.",
            UserWarning,
        )
