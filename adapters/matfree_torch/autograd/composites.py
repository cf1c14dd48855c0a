"""Functions of torch without a right second derivative, as compositions of such that have one.

``torch._weight_norm``, behind both of torch's weight normalisations, is off by 25 to 99 % in
torch 2.13 when differentiated twice on a CPU; the others raise. They are replaced while a
network's curvature is computed, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Table: TypeAlias = Mapping[Any, Callable[..., Any]]
"""From functions of torch's to what takes their place."""


@final
class Replaced(TorchFunctionMode):
    """A context in which calls of some functions go to others.

    Parameters
    ----------
    table : the functions, and what takes their place
    """

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._table.get(func, func)(*args, **(kwargs or {}))


def composites() -> Replaced:
    """A context in which functions without a right second derivative are compositions."""
    return Replaced(_COMPOSITES)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """G v / ||v||, the norm over every dimension but ``dim`` (over all for -1)."""
    others = [d for d in range(v.ndim) if d != dim]
    length: Tensor = torch.linalg.vector_norm(v, dim=others, keepdim=True)
    return v * (g / length)


def _hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    y = functional.relu6(x + 3) / 6
    return x.copy_(y) if inplace else y


def _embedding(
    indices: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """An embedding whose gradient is dense and that leaves the weights alone.

    With ``max_norm`` torch shortens rows in place, which is done to a copy here.
    """
    if max_norm is not None:
        shorter = weight.detach().clone()
        torch.embedding_renorm_(shorter, indices.detach(), max_norm, norm_type)
        weight = weight + (shorter - weight).detach()
    return functional.embedding(indices, weight, padding_idx, None, 2.0, scale_grad_by_freq)


def _embedding_bag(
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums or means of embeddings over bags; maxima stay with torch, which refuses them."""
    if mode == "max":
        return functional.embedding_bag(
            indices, weight, offsets, max_norm, norm_type, mode=mode, padding_idx=padding_idx
        )
    flat, places = indices.reshape(-1), torch.arange(indices.numel(), device=indices.device)
    if offsets is None:
        bags, bag = len(indices), places // max(1, indices.shape[1])
    else:
        bags = len(offsets) - include_last_offset
        bag = torch.searchsorted(offsets[:bags].contiguous(), places, right=True) - 1
    counted = torch.ones_like(flat) if padding_idx is None else (flat != padding_idx)
    share = counted.to(weight.dtype)
    if per_sample_weights is not None:
        share = share * per_sample_weights.reshape(-1)
    rows = _embedding(flat, weight, padding_idx, max_norm, norm_type) * share[:, None]
    sums = rows.new_zeros((bags, weight.shape[1])).index_add(0, bag, rows)
    if mode == "sum":
        return sums
    sizes = torch.bincount(bag, weights=counted.to(torch.float64), minlength=bags)
    return sums / sizes.clamp(min=1).to(sums.dtype)[:, None]


_COMPOSITES: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: _weight_norm,
    functional.hardsigmoid: _hardsigmoid,
    functional.embedding: _embedding,
    functional.embedding_bag: _embedding_bag,
}


def decomposed_losses() -> Replaced:
    """A context in which these losses are computed from their formulas."""
    return Replaced(_DECOMPOSED)


def _mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    terms = (input - target) ** 2
    reduction = _named(reduction, size_average, reduce)
    if weight is None:
        return _reduced(terms, reduction)
    mean = reduction == "mean"  # over the weights, not over the elements
    return (weight * terms).sum() / weight.sum() if mean else _reduced(weight * terms, reduction)


def _huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    gap = input - target
    size = gap.abs()
    terms = torch.where(size <= delta, 0.5 * gap**2, delta * (size - 0.5 * delta))
    return _reduced(terms if weight is None else weight * terms, reduction)


def _soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    terms = functional.softplus(-target * input)
    return _reduced(terms, _named(reduction, size_average, reduce))


def _reduced(terms: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return terms
    return terms.mean() if reduction == "mean" else terms.sum()


def _named(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, also where it is given by torch's two older flags."""
    if size_average is None and reduce is None:
        return reduction
    return "none" if reduce is False else ("sum" if size_average is False else "mean")


_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    functional.mse_loss: _mse_loss,
    functional.huber_loss: _huber_loss,
    functional.soft_margin_loss: _soft_margin_loss,
}
