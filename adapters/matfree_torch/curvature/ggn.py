"""The generalized Gauss-Newton matrix of a loss with respect to a network's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree_torch.curvature.gauss_newton import GaussNewtonOperator
from matfree_torch.curvature.loss_hessians import CLOSED_FORM_LOSSES, loss_hessian
from matfree_torch.curvature.output_hessians import OutputMatrix
from matfree_torch.curvature.over_batches import WeightDecay
from matfree_torch.hvp.strategies import GraphStrategy
from matfree_torch.objective.batches import Batch, Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.model_calls import loss_module
from matfree_torch.vectors.layout import Patterns


def ggn(
    model: nn.Module | Callable[..., Any],
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    batch: bool | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: GraphStrategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> GaussNewtonOperator:
    r"""The generalized Gauss-Newton matrix of a loss over data.

    .. math::

        G = \sum_i J_i^T \, \frac{\partial^2 \ell}{\partial z_i^2} \, J_i,
        \qquad J_i = \frac{\partial z_i}{\partial \theta},

    where z_i are the network's outputs for sample i and l is the loss. It is the Hessian without
    the term that contains second derivatives of the network. The Hessian in the outputs is
    available in closed form for torch's cross-entropy (with class weights, ignored targets,
    label smoothing, probability targets, and targets for each position), negative
    log-likelihood, squared error and binary cross-entropy with logits. For every other loss it
    is computed by double backward on the loss only.

    Parameters
    ----------
    model, loss, data, params, normalizer, batch, weight_decay
        As for :func:`hessian`. The outputs must be one tensor, or have one as ``.logits``.
    strategy : {"auto", "recompute"}
        As for :func:`hessian`: graphs are kept as long as they fit into memory, or never.
    memory, allow_tf32, process_group
        As for :func:`hessian`.

    Returns
    -------
    GaussNewtonOperator
        Symmetric, on the parameters' device, in float32 or wider. ``positive_semidefinite`` is
        True for the losses with a closed form. For another loss the matrix is positive
        semidefinite if the loss is convex in the outputs.

    Raises
    ------
    ValueError, TypeError
        As for :func:`hessian`.
    OperatorError
        The loss is not a scalar, the outputs contain no tensor or do not depend on the
        parameters, torch cannot differentiate the backward pass of a module, or the loss depends
        on parameters directly, not only through the outputs.

    Cost
    ----
    One forward and one backward pass for each batch, whose graphs are kept as long as they fit
    into memory. A matvec then takes 60 to 90 % of the time of a Hessian-vector product. Batches
    whose graphs do not fit take a forward and a backward pass for every block of vectors.

    References
    ----------
    N. N. Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient
    descent, doi:10.1162/08997660260028683. J. Martens (2020), New insights and perspectives on
    the natural gradient method, arXiv:1412.1193.

    Examples
    --------
    >>> import matfree as mf, torch
    >>> from matfree_torch import ggn
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    >>> G = ggn(model, torch.nn.CrossEntropyLoss(), (torch.ones(4, 2), torch.tensor([0, 1, 0, 1])))
    >>> G.positive_semidefinite, bool(torch.linalg.eigvalsh(G.to_dense())[0] > -1e-6)
    (True, True)
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
    )
    parameters = objective.parameters(params)
    return GeneralizedGaussNewton(objective, parameters, weight_decay, strategy, memory)


@final
class GeneralizedGaussNewton(GaussNewtonOperator):
    """The operator in which M is the Hessian of the loss in the outputs."""

    title = "Gauss-Newton matrix"

    @property
    def positive_semidefinite(self) -> bool:  # type: ignore[override]  # depends on the loss
        """Whether the loss is one of those that are known to be convex in the outputs."""
        return type(loss_module(self.objective.loss)) in CLOSED_FORM_LOSSES

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        return loss_hessian(self.objective, batch, outputs)
