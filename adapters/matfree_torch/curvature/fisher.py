"""Fisher information matrices of the distribution that a loss belongs to: three kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias, final

import array_api_compat
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from matfree import OperatorError, probes
from matfree.arguments import require_whole
from matfree.protocol import Seed
from matfree_torch.curvature.empirical_fisher import EmpiricalFisher, Positions
from matfree_torch.curvature.gauss_newton import GaussNewtonOperator
from matfree_torch.curvature.likelihoods import Likelihood, MeanOuterProduct
from matfree_torch.curvature.loss_hessians import (
    batch_likelihood,
)
from matfree_torch.curvature.output_hessians import OutputMatrix
from matfree_torch.curvature.over_batches import WeightDecay
from matfree_torch.hvp.strategies import GraphStrategy
from matfree_torch.objective.batches import Batch, Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Patterns
from matfree_torch.vectors.parameters import Parameters

FisherKind: TypeAlias = Literal["exact", "monte-carlo", "empirical"]
"""How the expectation over targets is computed. See :func:`fisher`."""

_TARGETS = 1000  # the stream of drawn targets; the core uses small numbers for its own streams
_DRAWS_PER_BLOCK = 64


def fisher(
    model: nn.Module | Callable[..., Any],
    loss: Callable[[Any, Any], Tensor] | None,
    data: Any,
    *,
    kind: FisherKind = "exact",
    positions: Positions = "samples",
    num_samples: int = 1,
    seed: Seed = None,
    params: Patterns | None = None,
    normalizer: Normalizer | None = None,
    batch: bool | None = None,
    weight_decay: WeightDecay = 0.0,
    strategy: GraphStrategy = "auto",
    memory: int | None = None,
    allow_tf32: bool = False,
    process_group: ProcessGroup | None = None,
) -> GaussNewtonOperator:
    r"""The Fisher information matrix of the distribution that a loss belongs to.

    .. math::

        F = \sum_i k_i \, E[g_i g_i^T],
        \qquad g_i = \frac{\partial (-\log p(y | x_i))}{\partial \theta},

    where k_i is the weight of sample i in the loss, 1/N for a mean over N samples. The three
    kinds differ in y:

    "exact"
        y ~ p(. | x_i), with the expectation in closed form. It is equal to :func:`ggn`.
    "monte-carlo"
        y ~ p(. | x_i), with the mean over ``num_samples`` draws as an unbiased estimate of the
        expectation.
    "empirical"
        y = y_i, the target in the data. This is not an approximation of the other two: it
        differs from them unless the network predicts the distribution of the data.

    Parameters
    ----------
    model, loss, data, params, normalizer, batch, weight_decay
        As for :func:`hessian`. "exact" and "monte-carlo" need one of torch's losses that are
        -log p: cross-entropy, negative log-likelihood, squared error, or binary cross-entropy
        with logits. Squared error, (z - y)^2 without a factor 1/2, is -log p of N(z, 1/2) up to
        a constant, so that F = (2/N) sum_i J_i^T J_i for one output; divide by 2 for unit
        variance. In a mean over several outputs, N counts the outputs as well, as the loss does.
        "empirical" accepts any loss that is a sum over samples; g_i is then the gradient of its
        i-th term, weights included.
    kind : {"exact", "monte-carlo", "empirical"}
    positions : {"samples", "joint"}
        What g_i is for "empirical", if the outputs of a sample have several positions. The other
        kinds do not depend on it, because targets at different positions are independent.

        "samples"
            Every position that has a target counts as a sample. The outputs of one position are
            along the axis that targets lack, which is axis 1 for torch's losses of classes. If
            targets have the shape of the outputs, it is the last of three axes, or the axis of
            length 1 of more.
        "joint"
            The gradients at all positions of a sample are added up.
    num_samples : int
        The number of draws for each target, for "monte-carlo".
    seed : int, None or numpy.random.Generator
        The seed of the draws. A draw is a function only of the seed, the index of the sample in
        the data and the index of the draw. All matvecs therefore see the same draws, and the
        batch size does not matter. The order of the samples does matter, and a loader that
        shuffles is an error.
    strategy : {"auto", "recompute"}
    memory, allow_tf32
        As for :func:`ggn`.
    process_group : torch.distributed.ProcessGroup, optional
        As for :func:`hessian`. Samples are indexed as if the data of all processes were
        concatenated in the order of their ranks, so that the draws are those of one process with
        all the data.

    Returns
    -------
    GaussNewtonOperator
        Symmetric and positive semidefinite. For "monte-carlo", ``seed`` is the seed used.

    Raises
    ------
    ValueError
        There is no such kind or choice of positions, num_samples is less than 1, or as for
        :func:`hessian`.
    OperatorError
        The loss is not known to be -log p of a distribution, or for "empirical" is no sum over
        samples, or the axis of positions is not determined; or as for :func:`ggn`.

    Cost
    ----
    As for :func:`ggn`. Drawing targets takes no pass through the network, so that the number of
    draws hardly matters.

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
    if positions not in ("samples", "joint"):
        raise ValueError(f"positions must be 'samples' or 'joint': got {positions!r}.")
    require_whole("num_samples", num_samples)
    _, objective = build_objective(
        model,
        loss,
        data,
        normalizer,
        batch=batch,
        ordered=kind == "monte-carlo",
        allow_tf32=allow_tf32,
        process_group=process_group,
        params=params,
    )
    parameters = objective.parameters(params)
    if kind == "empirical":
        return EmpiricalFisher(objective, parameters, weight_decay, strategy, memory, positions)
    if kind == "monte-carlo":
        seed = objective.agreed_seed(seed)
        objective.number_samples()
        return MonteCarloFisher(
            objective, parameters, weight_decay, strategy, memory, num_samples, seed
        )
    return ExactFisher(objective, parameters, weight_decay, strategy, memory)


@final
class ExactFisher(GaussNewtonOperator):
    """The operator in which M is the Fisher matrix of the distribution of the targets."""

    title = "Fisher matrix (exact)"

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        return _require_likelihood(self.objective, batch, outputs)


@final
class MonteCarloFisher(GaussNewtonOperator):
    """The operator in which M is the mean of r r^T over targets drawn from the network."""

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay,
        strategy: GraphStrategy,
        memory: int | None,
        num_samples: int,
        seed: int,
    ) -> None:
        super().__init__(objective, parameters, weight_decay, strategy, memory)
        self.num_samples, self.seed = num_samples, seed
        self.title = f"Fisher matrix (monte-carlo, {num_samples} draws, seed {seed})"

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        likelihood = _require_likelihood(self.objective, batch, outputs)
        num_data = len(likelihood.z)
        data_per_sample = num_data // likelihood.samples
        first = batch.first * data_per_sample
        data = range(first, first + num_data)

        def draw(law: str, entries: int) -> Iterator[Tensor]:
            for begin in range(0, self.num_samples, _DRAWS_PER_BLOCK):
                draws = range(begin, min(begin + _DRAWS_PER_BLOCK, self.num_samples))
                yield from _random_numbers(law, likelihood.z, data, entries, draws, self.seed)

        return MeanOuterProduct(likelihood, torch.stack(list(likelihood.draws(draw))))


def _require_likelihood(objective: Objective, batch: Batch, outputs: Any) -> Likelihood:
    likelihood = batch_likelihood(objective, batch, outputs)
    if likelihood is None:
        raise OperatorError(
            "the exact and the Monte Carlo Fisher matrix need a loss that is known to be -log p of "
            "a distribution: torch's CrossEntropyLoss, NLLLoss, MSELoss or BCEWithLogitsLoss, with "
            "targets of the outputs' shape for the last two; use ggn(...), or pass "
            "kind='empirical'."
        )
    return likelihood


def _random_numbers(
    law: str, like: Tensor, data: range, entries: int, draws: range, seed: int
) -> Tensor:
    """Uniform or normal random numbers, (draws, data, entries) float64, on the device of ``like``.

    Every number is a function of the seed and of the indices of its draw, datum and entry, so
    that a batch can be drawn without the ones before it.
    """
    xp = array_api_compat.array_namespace(like)
    rows = range(data.start * entries, data.stop * entries)
    if law == "normal":
        x: Tensor = probes.gaussian(
            xp, torch.float64, like.device, rows=rows, probes=draws, stream=_TARGETS, seed=seed
        ).T
    else:
        # The generator yields four words at a time. The blocks that contain the rows are computed,
        # and the words of other rows are dropped.
        blocks = range(rows.start >> 2, -(-rows.stop // 4))
        words = probes.words(
            xp, like.device, blocks=blocks, probes=draws, stream=_TARGETS, seed=seed
        )
        first = blocks.start << 2
        chosen = words[:, rows.start - first : rows.stop - first]
        # The midpoints of 2^32 intervals are never exactly 0 or 1.
        x = (chosen.to(torch.float64) + 0.5) * 2.0**-32
    return x.reshape(len(draws), len(data), entries)
