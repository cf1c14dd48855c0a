"""Functions of torch without a right second derivative, as compositions of such that have one.

``torch._weight_norm``, behind both of torch's weight normalisations, is off by 25 to 99 % in
torch 2.13 when differentiated twice on a CPU; the others raise. They are replaced while a
network's curvature is computed, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@final
class Composites(TorchFunctionMode):
    """A context in which calls of these functions go to their compositions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _COMPOSITES.get(func, func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """G v / ||v||, the norm over every dimension but ``dim`` (over all for -1)."""
    others = [d for d in range(v.ndim) if d != dim]
    length: Tensor = torch.linalg.vector_norm(v, dim=others, keepdim=True)
    return v * (g / length)


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return functional.relu6(x + 3) / 6


def _embedding(
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """An embedding whose gradient is dense, so that it can be laid into a vector."""
    return functional.embedding(
        indices, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq
    )


_COMPOSITES: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    functional.hardsigmoid: _hardsigmoid,
    functional.embedding: _embedding,
}
