r"""Implementations of the Hessian-vector product for one batch.

Every strategy starts from the gradient g(theta), computed in reverse mode. The product H v is

.. math::

    H v = \nabla \langle g, v \rangle
        = \frac{d}{dt} g(\theta + t v) \Big|_{t = 0}
        \approx \frac{g(\theta + h v) - g(\theta - h v)}{2 h},

which is reverse mode over reverse mode, forward mode over reverse mode, and a finite
difference. No strategy uses forward mode inside reverse mode, nor ``jacrev``: both make torch
2.13 compute wrong second derivatives of layer and batch normalization, without a warning.
"""

from __future__ import annotations

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
from matfree_torch.distributed.dtensors import local_tensor
from matfree_torch.hvp.graph_cache import CachePolicy
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.model_calls import require_finite_loss
from matfree_torch.objective.module_attributes import protected
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.entries import real_view
from matfree_torch.vectors.layout import Layout

Strategy: TypeAlias = Literal["auto", "recompute", "forward", "folded", "finite-difference"]
"""The names of the strategies for Hessian-vector products."""

GraphStrategy: TypeAlias = Literal["auto", "recompute"]
"""The strategies of matrices whose matvecs need the graphs of the batches."""

_PIECEWISE_LINEAR = (
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
# Torch has no exception class for an operation without forward mode or without a trace. The
# messages of the RuntimeErrors are all there is to go by.
_UNSUPPORTED = re.compile(
    r"forward AD|forward-mode|ZeroTensors|functorch|functionalize|tracing tensor|setup_context"
    r"|saved tensor hooks|INTERNAL ASSERT|jvp function|NYI|data pointer of Tensor"
    r"|FX to symbolically trace|stateless API"
)


class HvpStrategy(ABC):
    """One implementation of Hessian-vector products.

    Parameters
    ----------
    objective : the loss over the data
    layout : the parameters
    """

    cache_policy = CachePolicy(contents="nothing")
    """What is stored of the batches between matvecs."""
    supports_sharded_parameters = False
    """Whether parameters may be sharded over processes (DTensors)."""

    def __init__(self, objective: Objective, layout: Layout) -> None:
        if objective.mesh_communicator is not None and not self.supports_sharded_parameters:
            raise ValueError(
                "sharded parameters (DTensors) can only be differentiated in reverse mode; pass "
                "strategy='auto' or 'recompute'."
            )
        self.objective, self.layout = objective, layout

    def prepare(self, batch: Batch) -> Any:
        """Compute what matvecs need from a batch. By default, return the batch."""
        return batch

    @abstractmethod
    def multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        """The batch's Hessian applied to v, one tensor for each tensor of ``rows``.

        ``v`` maps names to tensors; the entries of tensors that it does not name are zero.
        """


@final
class DoubleBackward(HvpStrategy):
    """Reverse over reverse: the graph of the gradient is differentiated backward.

    Among all compositions it covers most of torch's operations and takes the least memory, and
    one graph serves any number of products.
    """

    supports_sharded_parameters = True

    def __init__(self, objective: Objective, layout: Layout, cache_policy: CachePolicy) -> None:
        super().__init__(objective, layout)
        self.cache_policy = cache_policy

    def prepare(self, batch: Batch) -> dict[str, Tensor]:
        with fast_double_backward():
            gradients = self.objective.gradients(batch, self.layout.tensors, create_graph=True)
        return dict(zip(self.layout.names, gradients, strict=True))

    def multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        # A gradient that is constant in the parameters has no graph, and autograd.grad rejects it.
        curved = [name for name in v if prepared[name].requires_grad]
        if not curved:
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
class ForwardOverReverse(HvpStrategy):
    """The derivative of the gradient along v in forward mode; nothing is kept between products."""

    def multiply(self, prepared: Batch, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        with self.objective.isolated(), decomposed_losses(), explain_unsupported("forward"):
            along = gradient_along(self.objective, prepared, self.layout, require_finite_loss)
            return along(v, rows)


@final
class FiniteDifference(HvpStrategy):
    r"""Central differences of gradients.

    .. math::

        H v \approx \frac{g(\theta + h v) - g(\theta - h v)}{2 h},
        \qquad h = \epsilon^{1/3} \, \|\theta\| / \|v\|.

    This h balances the truncation error, O(h^2), and the rounding error, O(eps / h).
    """

    def __init__(self, objective: Objective, layout: Layout) -> None:
        super().__init__(objective, layout)
        half = [x.dtype for x in layout.tensors if torch.finfo(x.dtype).bits < 32]
        if half:
            raise ValueError(
                f"finite differences need parameters in float32 or wider: got {half[0]}; pass "
                "strategy='auto', or convert the model with model.float()."
            )
        modules = objective.model.modules()
        kinked = next((m for m in modules if isinstance(m, _PIECEWISE_LINEAR)), None)
        if kinked is not None:
            warnings.warn(
                f"the model contains {type(kinked).__name__}, which is piecewise linear: the "
                "gradient jumps at its kinks, and finite differences across a jump may be many "
                "times as large as the Hessian; pass strategy='auto'.",
                UserWarning,
                stacklevel=5,
            )

    def multiply(self, prepared: Batch, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        return central_difference(self.objective, prepared, self.layout, v, rows)


def central_difference(
    objective: Objective,
    batch: Batch,
    layout: Layout,
    v: dict[str, Tensor],
    rows: Layout,
    relative_step: float | None = None,
) -> tuple[Tensor, ...]:
    """The central difference of :class:`FiniteDifference`, as for :meth:`HvpStrategy.multiply`.

    ``relative_step`` is the length of the step, relative to the norm of the parameters.
    """
    moved = [(x, v[n]) for n, x in zip(layout.names, layout.tensors, strict=True) if n in v]
    length = _global_norm(layout, [d for _, d in moved])
    if length == 0:
        return tuple(map(torch.zeros_like, rows.tensors))
    eps = max(torch.finfo(x.dtype).eps for x, _ in moved)
    scale = _global_norm(layout, [x for x, _ in moved]) or 1.0  # the origin has no scale
    step = (relative_step or eps ** (1 / 3)) * scale / length

    def gradient_after(step: float) -> tuple[Tensor, ...]:
        steps = {name: step * direction for name, direction in v.items()}
        with layout.moved(steps), objective.isolated():  # with the same random numbers
            return objective.gradients(batch, rows.tensors)

    up, down = gradient_after(step), gradient_after(-step)
    return tuple((a - b) / (2 * step) for a, b in zip(up, down, strict=True))


def _global_norm(layout: Layout, tensors: list[Tensor]) -> float:
    shards = [real_view(local_tensor(x.detach())) for x in tensors]
    square = torch.stack([x.to(torch.float64).square().sum() for x in shards]).sum()
    # The local shards do not make up the whole vector.
    redistribution = layout.redistribution
    return math.sqrt(
        square if redistribution is None else redistribution.communicator.all_reduce(square)
    )


def gradient_along(
    objective: Objective, batch: Batch, layout: Layout, check: Callable[[Tensor], Any] = id
) -> Callable[[dict[str, Tensor], Layout], tuple[Tensor, ...]]:
    """Return the function (v, rows) -> H v of a batch, computed in forward over reverse mode.

    Reverse mode is inside and forward mode outside. The opposite order is wrong in torch 2.13.
    ``check`` is called with the loss.
    """
    theta = {n: x.detach() for n, x in zip(layout.names, layout.tensors, strict=True)}

    def value(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        # Running statistics are updated in place. The copies have to be made inside the
        # differentiated function, because functorch forbids writing to tensors from outside.
        with protected(objective.state.modules):
            loss = objective.value_at(batch, parameters)
        return loss, loss  # one to differentiate, one to check

    def multiply(v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        direction = {n: v[n] if n in v else torch.zeros_like(x) for n, x in theta.items()}
        result: Any = torch.func.jvp(torch.func.grad(value, has_aux=True), (theta,), (direction,))
        (_, loss), (along, _) = result
        check(loss)
        return tuple(along[name].detach() for name in rows.names)

    return multiply


@contextmanager
def explain_unsupported(strategy: str) -> Iterator[None]:
    """Turn torch's error about an unsupported operation into one that names the strategy."""
    try:
        with warnings.catch_warnings():  # torch scripts some of its own functions at first use
            warnings.filterwarnings("ignore", message="`torch.jit.script")
            yield
    except RuntimeError as cause:
        if not _UNSUPPORTED.search(str(cause)):
            raise
        operation = re.search(r"forward AD with (\w+)", str(cause))
        what = operation[1] if operation else str(cause).split("\n")[0][:160]
        raise OperatorError(
            f"strategy={strategy!r} does not support an operation of this model or loss ({what}); "
            "pass strategy='auto', which uses reverse mode twice."
        ) from cause


def require_strategy(strategy: str, known: Any, memory: int | None) -> None:
    """Refuse unknown strategies, and a memory budget for a strategy that keeps nothing."""
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
            "keeps nothing; omit memory=, or pass strategy='auto'."
        )


def graph_cache_policy(strategy: str, memory: int | None) -> CachePolicy:
    """The cache policy of the strategies that need graphs: "recompute" keeps none of them."""
    return CachePolicy(0 if strategy == "recompute" else memory)
