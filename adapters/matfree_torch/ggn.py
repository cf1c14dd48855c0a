"""Gauss-Newton and Fisher matrices of a loss with respect to a network's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree.algorithms.plan import require_whole
from matfree.protocol import Seed
from matfree_torch.batches import Normalizer
from matfree_torch.gaussnewton import (
    EmpiricalFisher,
    ExactFisher,
    GaussNewton,
    GaussNewtonOperator,
    MonteCarloFisher,
)
from matfree_torch.layout import Patterns
from matfree_torch.parameterwise import WeightDecay
from matfree_torch.preparation import prepared
from matfree_torch.strategies import GraphStrategy

FisherKind: TypeAlias = Literal["exact", "monte-carlo", "empirical"]


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
    _, objective = prepared(
        model, loss, data, normalizer, allow_tf32=allow_tf32, process_group=process_group
    )
    parameters = objective.parameters(params)
    return GaussNewton(objective, parameters, weight_decay, strategy, memory)


def fisher(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    kind: FisherKind = "exact",
    num_samples: int = 1,
    seed: Seed = None,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: GraphStrategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> GaussNewtonOperator:
    r"""The Fisher information matrix of the distribution that a loss belongs to.

    F = sum_i k_i E[g_i g_i^T], with g_i the gradient of -log p(y | x_i) in the parameters and
    k_i the sample's weight in the loss, 1/N for a mean over N samples. The three kinds differ
    in what y is:

    "exact"
        y ~ p(. | x_i), the expectation in closed form. Equal to :func:`ggn`.
    "monte-carlo"
        y ~ p(. | x_i), the mean over ``num_samples`` draws: unbiased for the exact one.
    "empirical"
        y = y_i, the target in the data. Not an approximation of the others: it differs from
        them wherever the network does not predict the data's own distribution.

    Parameters
    ----------
    model, loss, data, params, normalizer, weight_decay
        As for :func:`hessian`. "exact" and "monte-carlo" need a loss of torch's own that is
        -log p: cross-entropy, negative log-likelihood, squared error, binary cross-entropy with
        logits. Squared error, (z - y)^2 without a factor 1/2, is -log p of N(z, 1/2) up to a
        constant, so that F = (2/N) sum_i J_i^T J_i for one output; divide by 2 for unit
        variance. For a mean over several outputs N counts them too, as the loss does.
        Where targets have positions, every position is a sample of its own.
        "empirical" takes any loss that adds up over samples, of whose i-th term, weights
        included, g_i is then the gradient.
    kind : {"exact", "monte-carlo", "empirical"}
    num_samples : int
        Draws for each target, for "monte-carlo".
    seed : int, None or numpy.random.Generator
        Of the draws: a function of the seed, the number of the sample in the data and the number
        of the draw alone, so that every product sees the same ones and the batch size does
        not matter. The order of the samples does, and a shuffling loader is refused.

    strategy : {"auto", "recompute"}
    memory : int, optional
    allow_tf32 : bool
        As for :func:`hessian`.
    process_group : torch.distributed.ProcessGroup, optional
        As for :func:`hessian`. Draws are numbered as if the parts of the data lay end to end
        in the order of the processes, so that they are those of one process with all of it.

    Returns
    -------
    GaussNewtonOperator
        Symmetric and positive semidefinite; ``seed`` is the one used.

    Raises
    ------
    ValueError
        The kind is none of these, num_samples is below 1, or as for :func:`hessian`.
    OperatorError
        The loss is not known to be -log p of a distribution, or as for :func:`ggn`.

    Cost
    ----
    As for :func:`ggn`, whatever num_samples is: the draws are made on the outputs, once.

    References
    ----------
    J. Martens (2020), New insights and perspectives on the natural gradient method,
    arXiv:1412.1193. F. Kunstner, L. Balles, P. Hennig (2019), Limitations of the empirical
    Fisher approximation for natural gradient descent, arXiv:1905.12558.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import fisher
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> data = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
    >>> fisher(model, torch.nn.MSELoss(), data).to_dense()  # 2 (1 + 9) / 2
    tensor([[10.]])
    """
    if kind not in ("exact", "monte-carlo", "empirical"):
        raise ValueError(f"kind must be 'exact', 'monte-carlo' or 'empirical': got {kind!r}.")
    require_whole("num_samples", num_samples)
    ordered = kind == "monte-carlo"
    _, objective = prepared(
        model,
        loss,
        data,
        normalizer,
        ordered=ordered,
        allow_tf32=allow_tf32,
        process_group=process_group,
    )
    parameters = objective.parameters(params)
    if kind == "empirical":
        return EmpiricalFisher(objective, parameters, weight_decay, strategy, memory)
    if kind == "monte-carlo":
        seed = objective.agreed(seed)
        objective.number_samples()
        return MonteCarloFisher(
            objective, parameters, weight_decay, strategy, memory, num_samples, seed
        )
    return ExactFisher(objective, parameters, weight_decay, strategy, memory)
