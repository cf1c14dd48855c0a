r"""How a Hessian-vector product is computed from a batch.

All of them differentiate the gradient, once more backwards or forwards along v, or take the
difference of two gradients. None has forward mode inside reverse mode, nor ``jacrev``
anywhere: torch 2.13 computes these wrongly, without a word, for layer and batch normalisation.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn

from matfree import OperatorError
from matfree_torch.autograd.composites import decomposed_losses
from matfree_torch.autograd.convolutions import fast_double_backward
from matfree_torch.distributed.dtensors import is_dtensor, local_tensor
from matfree_torch.hvp.graph_cache import Retention
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout

Strategy: TypeAlias = Literal["auto", "recompute", "forward", "folded", "finite-difference"]
GraphStrategy: TypeAlias = Literal["auto", "recompute"]

_PIECEWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_LACKING = re.compile(
    r"forward AD|forward-mode|ZeroTensors|functorch|functionalize|tracing tensor|setup_context"
    r"|saved tensor hooks|INTERNAL ASSERT"
)


class Products(ABC):
    """One way of making products.

    Parameters
    ----------
    objective : the loss over the data
    layout : the parameters
    """

    retention = Retention(contents="nothing")
    """What it keeps of the batches."""
    through_parts = False
    """Whether it goes through parameters that are cut up over processes."""

    def __init__(self, objective: Objective, layout: Layout) -> None:
        if objective.mesh_communicator is not None and not self.through_parts:
            raise ValueError(
                "parameters that are cut up over processes can be differentiated backwards only; "
                "take strategy='auto' or 'recompute'."
            )
        self.objective, self.layout = objective, layout

    def prepare(self, batch: Batch) -> Any:
        """What products need from a batch: by default the batch."""
        return batch

    @abstractmethod
    def multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        """The batch's Hessian times vectors by name (0 where not named), as the rows' pieces."""


@final
class DoubleBackward(Products):
    """Reverse over reverse: the gradient's own graph is differentiated backwards.

    Of all compositions it covers most of torch's operations, takes the least memory, and its
    graph serves any number of products.
    """

    through_parts = True

    def __init__(self, objective: Objective, layout: Layout, retention: Retention) -> None:
        super().__init__(objective, layout)
        self.retention = retention

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        with fast_double_backward():
            gradients = self.objective.gradients(batch, self.layout.tensors, create_graph=True)
        return dict(zip(self.layout.names, gradients, strict=True))

    def multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        curved = [name for name in v if prepared[name].requires_grad]
        if not curved:  # a constant gradient
            return tuple(map(torch.zeros_like, rows.tensors))
        return torch.autograd.grad(
            [prepared[name] for name in curved],
            rows.tensors,
            grad_outputs=[v[name] for name in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


@final
class ForwardOverReverse(Products):
    """The gradient's derivative along v in forward mode, with nothing kept between products."""

    def multiply(self, prepared: Batch, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        with self.objective.isolated(), decomposed_losses(), lacking_explained("forward"):
            return gradient_along(self.objective, prepared, self.layout)(v, rows)


@final
class FiniteDifference(Products):
    r"""(g(theta + h v) - g(theta - h v)) / 2h with h = eps^(1/3) ||theta|| / ||v||.

    That h balances the difference's own error, O(h^2), and rounding, O(eps / h).
    """

    def __init__(self, objective: Objective, layout: Layout) -> None:
        super().__init__(objective, layout)
        half = [x.dtype for x in layout.tensors if torch.finfo(x.dtype).bits < 32]
        if half:
            raise ValueError(
                f"finite differences need float32 parameters at least: got {half[0]}; take "
                "strategy='auto', or model.float()."
            )
        kinked = next((m for m in objective.model.modules() if isinstance(m, _PIECEWISE)), None)
        if kinked is not None:
            warnings.warn(
                f"the model holds {type(kinked).__name__}, which is linear in pieces: a finite "
                "difference sees the jumps of the gradient between the pieces, which may be many "
                "times the Hessian's size; take strategy='auto'.",
                UserWarning,
                stacklevel=5,
            )

    def multiply(self, prepared: Batch, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        moved = [
            (x, v[n]) for n, x in zip(self.layout.names, self.layout.tensors, strict=True) if n in v
        ]
        length = self._length([d for _, d in moved])
        if length == 0:
            return tuple(map(torch.zeros_like, rows.tensors))
        finest = max(torch.finfo(x.dtype).eps for x, _ in moved)
        size = self._length([x for x, _ in moved]) or 1.0  # at the origin nothing tells a scale
        step = finest ** (1 / 3) * size / length
        up = self._gradient_at(prepared, moved, step, rows)
        down = self._gradient_at(prepared, moved, -step, rows)
        return tuple((a - b) / (2 * step) for a, b in zip(up, down, strict=True))

    def _gradient_at(
        self, batch: Batch, moved: list[tuple[Tensor, Tensor]], step: float, rows: Layout
    ) -> tuple[Tensor, ...]:
        """The gradient a step away; the parameters are the model's own, and put back exactly."""
        with contextlib.ExitStack() as stack:
            for x, direction in moved:
                stack.enter_context(_stepped(x, step * direction))
            with self.objective.isolated():  # the same random numbers on both sides
                return self.objective.gradients(batch, rows.tensors)

    def _length(self, tensors: list[Tensor]) -> float:
        parts = [local_tensor(x.detach()).to(torch.float64).square().sum() for x in tensors]
        square = torch.stack(parts).sum()
        redistribution = self.layout.redistribution  # parts of one vector, where tensors are cut up
        return math.sqrt(
            square if redistribution is None else redistribution.communicator.all_reduce(square)
        )


def gradient_along(
    objective: Objective, batch: Batch, layout: Layout
) -> Callable[[dict[str, Tensor], Layout], tuple[Tensor, ...]]:
    """A function of v and rows: forward mode outside, reverse mode inside, the right way round."""
    theta = {n: x.detach() for n, x in zip(layout.names, layout.tensors, strict=True)}

    def value(parameters: dict[str, Tensor]) -> Tensor:
        # Running statistics are written into: into copies made inside what is differentiated.
        buffers = {name: x.clone() for name, x in objective.model.named_buffers()}
        return objective.value(objective.outputs(batch, parameters | buffers), batch.targets)

    def product(v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        direction = {n: v[n] if n in v else torch.zeros_like(x) for n, x in theta.items()}
        along: Any = torch.func.jvp(torch.func.grad(value), (theta,), (direction,))[1]
        return tuple(along[name].detach() for name in rows.names)

    return product


@contextmanager
def lacking_explained(strategy: str) -> Iterator[None]:
    """Say which strategy does not cover an operation, and which may."""
    try:
        with warnings.catch_warnings():  # torch scripts some of its own functions at first use
            warnings.filterwarnings("ignore", message="`torch.jit.script")
            yield
    except RuntimeError as cause:
        if not _LACKING.search(str(cause)):
            raise
        operation = re.search(r"forward AD with (\w+)", str(cause))
        what = operation[1] if operation else str(cause).split("\n")[0][:160]
        raise OperatorError(
            f"strategy={strategy!r} cannot go through something in this model or loss ({what}); "
            "take strategy='auto', which differentiates backwards twice."
        ) from cause


def require_strategy(strategy: str, known: Any, memory: int | None) -> None:
    """Refuse what is no strategy, and a budget that nothing would be kept in."""
    names = get_args(known)
    if strategy not in names:
        raise ValueError(
            f"strategy must be one of {', '.join(map(repr, names))}: got {strategy!r}."
        )
    if memory is None:
        return
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 0:
        raise ValueError(f"memory must be a number of bytes, 0 or more, or None: got {memory!r}.")
    if strategy not in ("auto", "folded"):
        raise ValueError(
            f"memory is the budget for what is kept between products, and strategy={strategy!r} "
            "keeps nothing; leave it out, or take strategy='auto'."
        )


def graph_retention(strategy: str, memory: int | None) -> Retention:
    """What the strategies that keep graphs keep."""
    return Retention(0 if strategy == "recompute" else memory)


@contextmanager
def _stepped(x: Tensor, step: Tensor) -> Iterator[None]:
    """A tensor somewhere else for a while."""
    original = x.data
    if not is_dtensor(x):
        try:
            x.data = original + step
            yield
        finally:
            x.data = original
        return
    here = local_tensor(original)  # whoever gathers the parts knows where they lie
    before = here.clone()
    try:
        here += local_tensor(step)
        yield
    finally:
        here.copy_(before)
