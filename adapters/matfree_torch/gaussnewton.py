r"""Gauss-Newton and Fisher matrices of a network: J^T M J without a second derivative of it.

J is the Jacobian of the network's outputs and M a small matrix on them, known in closed form
for the usual losses. J^T is a backward pass; J comes from differentiating J^T u, which is
linear in u, with respect to u: no forward mode, and the same coverage of operations as the
Hessian. Whatever M = sum r r^T is, the result is positive semidefinite.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, final

import array_api_compat
import torch
from torch import Tensor

from matfree import OperatorError, probes
from matfree_torch.batches import Batch
from matfree_torch.calls import output_tensor
from matfree_torch.layout import Layout
from matfree_torch.lean import lean
from matfree_torch.likelihoods import KNOWN, Averaged, Likelihood, likelihood
from matfree_torch.losses import as_module
from matfree_torch.objective import Objective
from matfree_torch.outputs import Differentiated, Outer, OutputMatrix
from matfree_torch.parameters import Parameters
from matfree_torch.parameterwise import ParameterCurvature, WeightDecay
from matfree_torch.strategies import GraphStrategy, graph_retention, require_strategy

_TARGETS = 1000  # the stream of drawn targets, apart from those of the algorithms
_DRAWS_AT_ONCE = 64


class Linearized(NamedTuple):
    """A batch's outputs z, and J^T u as a function of u, both with their graphs."""

    z: Tensor
    u: Tensor
    pulled: dict[str, Tensor]
    matrix: OutputMatrix

    @classmethod
    def make(cls, z: Tensor, layout: Layout, matrix: OutputMatrix) -> Linearized:
        """The graph of J^T u with respect to the layout's tensors."""
        if not z.requires_grad:
            raise OperatorError(
                f"the model's outputs do not depend on the {layout.noun}s in a differentiable way; "
                "are they detached?"
            )
        u = torch.zeros_like(z).requires_grad_()
        pulled = torch.autograd.grad(
            z, layout.tensors, u, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return cls(z, u, dict(zip(layout.names, pulled, strict=True)), matrix)

    def push(self, v: dict[str, Tensor]) -> Tensor:
        """J v: the derivative of <J^T u, v> with respect to u."""
        used = [name for name in v if self.pulled[name].requires_grad]
        if not used:
            return torch.zeros_like(self.z)
        (tangent,) = torch.autograd.grad(
            [self.pulled[name] for name in used],
            self.u,
            [v[name] for name in used],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return tangent

    def pull(self, cotangent: Tensor, rows: Layout) -> tuple[Tensor, ...]:
        """J^T cotangent, the rows' pieces of it."""
        return torch.autograd.grad(
            self.z,
            rows.tensors,
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


class GaussNewtonOperator(ParameterCurvature):
    """J^T M J for the outputs' Jacobian J; made by :func:`ggn` and :func:`fisher`.

    A subclass says what M is.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import ggn
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> G = ggn(model, torch.nn.MSELoss(), (torch.randn(5, 2), torch.randn(5, 1)))
    >>> G.positive_semidefinite, bool(torch.linalg.eigvalsh(G.to_dense())[0] > -1e-5)
    (True, True)
    """

    positive_semidefinite = True

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay = 0.0,
        strategy: GraphStrategy = "auto",
        memory: int | None = None,
    ) -> None:
        require_strategy(strategy, GraphStrategy, memory)
        retention = graph_retention(strategy, memory)
        super().__init__(objective, parameters, weight_decay, strategy, retention)

    @abstractmethod
    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        """M for one batch."""

    def _prepare(self, batch: Batch) -> Linearized:
        with lean():
            outputs = self.objective.outputs(batch)
        return Linearized.make(output_tensor(outputs), self.layout, self._matrix(batch, outputs))

    def _multiply(
        self, prepared: Linearized, v: dict[str, Tensor], rows: Layout
    ) -> tuple[Tensor, ...]:
        return prepared.pull(prepared.matrix.product(prepared.push(v)), rows)


@final
class GaussNewton(GaussNewtonOperator):
    """M is the Hessian of the loss in the outputs."""

    title = "Gauss-Newton matrix"

    @property
    def positive_semidefinite(self) -> bool:  # type: ignore[override]  # told from the loss
        """Whether the loss is one of those known to be convex in the outputs."""
        return type(as_module(self.objective.loss)) in KNOWN

    def _matrix(self, batch: Batch, outputs: Any) -> OutputMatrix:
        return output_hessian(self.objective, batch, outputs)


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
        like = likelihood(as_module(self.objective.loss), z, batch.targets)
        if like is not None:
            return Averaged(like, like.observed()[None])
        return Outer(_differentiated(self.objective, batch, outputs).gradient, batch.weight)


def output_hessian(objective: Objective, batch: Batch, outputs: Any) -> OutputMatrix:
    """The loss's Hessian in a batch's outputs, in closed form where there is one."""
    like = _likelihood(objective, batch, outputs)
    return _differentiated(objective, batch, outputs) if like is None else like


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


def _likelihood(objective: Objective, batch: Batch, outputs: Any) -> Likelihood | None:
    z = output_tensor(outputs)
    with torch.no_grad():
        objective.value(outputs, batch.targets)  # refuses what is no scalar
    return likelihood(as_module(objective.loss), z, batch.targets)


def _required_likelihood(objective: Objective, batch: Batch, outputs: Any) -> Likelihood:
    like = _likelihood(objective, batch, outputs)
    if like is None:
        raise OperatorError(
            "the exact and the Monte-Carlo Fisher matrix need a loss known to be -log p of a "
            "distribution: torch's CrossEntropyLoss, NLLLoss, MSELoss or BCEWithLogitsLoss, with "
            "targets of the outputs' shape for the last two; take ggn(...), or kind='empirical'."
        )
    return like


def _differentiated(objective: Objective, batch: Batch, outputs: Any) -> Differentiated:
    """The loss as a function of the outputs, cut off from the network where that can be done."""
    if isinstance(outputs, Tensor):
        outputs = outputs.detach().requires_grad_()
    return Differentiated(output_tensor(outputs), objective.value(outputs, batch.targets))
