"""Losses of torch's without forward derivatives of their backward, from elementary operations.

Differentiating ``mse_loss`` backwards and then forwards raises in torch 2.13, and crashes the
interpreter while it is traced; Huber's and the soft margin loss raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from matfree_torch.composites import Replaced


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
