"""Gauss-Newton and Fisher matrices of a loss with respect to a network's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree_torch.curvature.gauss_newton import GaussNewtonOperator, output_hessian
from matfree_torch.curvature.likelihoods import KNOWN
from matfree_torch.curvature.output_hessians import OutputMatrix
from matfree_torch.curvature.over_batches import WeightDecay
from matfree_torch.hvp.strategies import GraphStrategy
from matfree_torch.objective.batches import Batch, Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.model_calls import loss_module
from matfree_torch.vectors.layout import Patterns


def ggn(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: GraphStrategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> GaussNewtonOperator:
    r"""The generalized Gauss-Newton matrix of a loss over data.

    G = sum_i J_i^T (d^2 loss / dz_i^2) J_i, with z_i the network's outputs for sample i and J_i
    their Jacobian in the parameters: the Hessian without the curvature of the network itself.
    The Hessian in the outputs is in closed form for torch's cross-entropy (class weights,
    ignored targets, smoothing, given probabilities, targets per position), negative
    log-likelihood, squared error and binary cross-entropy with logits, and comes from double
    backward on the outputs alone for every other loss.

    Parameters
    ----------
    model, loss, data, params, normalizer, weight_decay
        As for :func:`hessian`. The outputs must be one tensor, or hold one as ``.logits``.
    strategy : {"auto", "recompute"}
    memory : int, optional
        As for :func:`hessian`: graphs are kept while they fit, or never.
    allow_tf32 : bool
        As for :func:`hessian`.
    process_group : torch.distributed.ProcessGroup, optional
        As for :func:`hessian`: each process calls this with its own part of the data.

    Returns
    -------
    GaussNewtonOperator
        Symmetric, on the parameters' device, float32 at least; ``positive_semidefinite`` where
        the loss is one of those with a closed form. For another loss it is so if the loss is
        convex in the outputs.

    Raises
    ------
    ValueError, TypeError
        As for :func:`hessian`.
    OperatorError
        The loss is not a scalar, the outputs hold no tensor or do not depend on the
        parameters, or torch has no right second derivative of a module.

    Cost
    ----
    A forward and a backward for each batch, whose graphs are kept while they fit; then six to
    nine tenths of the time that the Hessian takes a product. Where they do not fit, a forward
    and a backward per batch and block of products.

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
        model, loss, data, normalizer, allow_tf32=allow_tf32, process_group=process_group
    )
    parameters = objective.parameters(params)
    return GaussNewton(objective, parameters, weight_decay, strategy, memory)


@final
class GaussNewton(GaussNewtonOperator):
    """M is the Hessian of the loss in the outputs."""

    title = "Gauss-Newton matrix"

    @property
    def positive_semidefinite(self) -> bool:  # type: ignore[override]  # told from the loss
        """Whether the loss is one of those known to be convex in the outputs."""
        return type(loss_module(self.objective.loss)) in KNOWN

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        return output_hessian(self.objective, batch, outputs)
