"""Fisher information matrices: exact, sampled and empirical."""

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
from matfree_torch.curvature.gauss_newton import (
    _DRAWS_AT_ONCE,
    _TARGETS,
    GaussNewtonOperator,
    _differentiated,
    _likelihood,
)
from matfree_torch.curvature.likelihoods import Averaged, Likelihood, likelihood
from matfree_torch.curvature.output_hessians import Outer, OutputMatrix
from matfree_torch.curvature.over_batches import WeightDecay
from matfree_torch.hvp.strategies import GraphStrategy
from matfree_torch.objective.batches import Batch, Normalizer
from matfree_torch.objective.build import build_objective
from matfree_torch.objective.model_calls import loss_module, output_tensor
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Parameters, Patterns


@final
class ExactFisher(GaussNewtonOperator):
    """M is the distribution's own Fisher matrix."""

    title = "Fisher matrix (exact)"

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        return _required_likelihood(self.objective, batch, outputs)


@final
class MonteCarloFisher(GaussNewtonOperator):
    """M is the mean of r r^T over targets drawn from the network's own distribution."""

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
        like = _required_likelihood(self.objective, batch, outputs)
        rows_a_sample = len(like.z) // like.samples
        data = range(batch.first * rows_a_sample, batch.first * rows_a_sample + len(like.z))

        def draw(law: str, entries: int) -> Iterator[Tensor]:
            for begin in range(0, self.num_samples, _DRAWS_AT_ONCE):
                which = range(begin, min(begin + _DRAWS_AT_ONCE, self.num_samples))
                yield from drawn(law, like.z, data, entries, which=which, seed=self.seed)

        return Averaged(like, torch.stack(list(like.draws(draw))))


@final
class EmpiricalFisher(GaussNewtonOperator):
    """M is r r^T for the targets in the data."""

    title = "Fisher matrix (empirical)"

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        z = output_tensor(outputs)
        like = likelihood(loss_module(self.objective.loss), z, batch.targets)
        if like is not None:
            return Averaged(like, like.observed()[None])
        return Outer(_differentiated(self.objective, batch, outputs).gradient, batch.weight)


def drawn(law: str, like: Tensor, data: range, entries: int, *, which: range, seed: int) -> Tensor:
    """Draws number ``which`` for some data, (which, data, entries) float64: a function of these."""
    xp = array_api_compat.array_namespace(like)
    rows = range(data.start * entries, data.stop * entries)
    if law == "normal":
        x: Tensor = probes.gaussian(
            xp, torch.float64, like.device, rows=rows, probes=which, stream=_TARGETS, seed=seed
        ).T
    else:
        blocks = range(rows.start >> 2, -(-rows.stop // 4))
        words = probes.words(
            xp, like.device, blocks=blocks, probes=which, stream=_TARGETS, seed=seed
        )
        first = blocks.start << 2
        chosen = words[:, rows.start - first : rows.stop - first]
        x = (chosen.to(torch.float64) + 0.5) * 2.0**-32
    return x.reshape(len(which), len(data), entries)


def _required_likelihood(objective: Objective, batch: Batch, outputs: Any) -> Likelihood:
    like = _likelihood(objective, batch, outputs)
    if like is None:
        raise OperatorError(
            "the exact and the Monte-Carlo Fisher matrix need a loss known to be -log p of a "
            "distribution: torch's CrossEntropyLoss, NLLLoss, MSELoss or BCEWithLogitsLoss, with "
            "targets of the outputs' shape for the last two; take ggn(...), or kind='empirical'."
        )
    return like


FisherKind: TypeAlias = Literal["exact", "monte-carlo", "empirical"]


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
    _, objective = build_objective(
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
        seed = objective.agreed_seed(seed)
        objective.number_samples()
        return MonteCarloFisher(
            objective, parameters, weight_decay, strategy, memory, num_samples, seed
        )
    return ExactFisher(objective, parameters, weight_decay, strategy, memory)
