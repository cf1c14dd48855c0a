"""Functions of torch rewritten as composites of operations that can be differentiated twice.

Replacements are active only while a network's curvature is computed. There are two sets:

* :func:`composites` replaces functions whose second derivative is wrong or missing. That of
  ``torch._weight_norm``, which implements both of torch's weight normalizations, has errors between
  25 and 99 % on a CPU in torch 2.13. The other functions raise an exception.
* :func:`decomposed_losses` replaces losses that can be differentiated backward twice, but not
  backward and then forward. In torch 2.13, ``mse_loss`` raises an exception then, and crashes the
  interpreter if it is traced; the Huber loss and the soft margin loss raise an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Replacements: TypeAlias = Mapping[Any, Callable[..., Any]]
"""Functions of torch, and the functions called in place of them."""


@final
class Replaced(TorchFunctionMode):
    """A context in which some functions of torch are replaced by others.

    Parameters
    ----------
    replacements : mapping
        The functions, and the functions called in place of them.
    """

    def __init__(self, replacements: Replacements) -> None:
        super().__init__()
        self._replacements = replacements

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._replacements.get(func, func)(*args, **(kwargs or {}))


@final
class Substituted(TorchFunctionMode):
    """A context in which functions of torch get other tensors in place of some of their arguments.

    Parameters
    ----------
    tensors : dict
        The tensors to pass, by the ``id`` of the tensors that they replace.
    """

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = {name: self._exchanged(x) for name, x in (kwargs or {}).items()}
        return func(*map(self._exchanged, args), **named)

    def _exchanged(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._tensors.get(id(x), x)
        if type(x) in (tuple, list):  # of torch.cat, or the weights of a recurrent layer
            return type(x)(map(self._exchanged, x))
        return x


def composites() -> Replaced:
    """A context in which functions without a correct second derivative are composites."""
    return Replaced(_COMPOSITES)


def decomposed_losses() -> Replaced:
    """A context in which losses without forward derivatives of their backward are composites."""
    return Replaced(_DECOMPOSED_LOSSES)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """The weights g v / ||v||, with norms over all dimensions except ``dim`` (all for -1)."""
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
    """An embedding with a dense gradient, which never modifies its weights.

    With ``max_norm``, torch rescales rows of the weights in place; this function rescales a copy.
    """
    if max_norm is not None:
        rescaled = weight.detach().clone()
        torch.embedding_renorm_(rescaled, indices.detach(), max_norm, norm_type)
        # The value is that of the rescaled weights, the gradient that of torch: the identity.
        weight = weight + (rescaled - weight).detach()
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
    """Sums or means of embeddings over bags. For maxima torch is called, which raises an error."""
    if mode == "max":
        return functional.embedding_bag(
            indices, weight, offsets, max_norm, norm_type, mode=mode, padding_idx=padding_idx
        )
    flat, position = indices.reshape(-1), torch.arange(indices.numel(), device=indices.device)
    if offsets is None:
        num_bags, bag = len(indices), position // max(1, indices.shape[1])
    else:
        num_bags = len(offsets) - include_last_offset
        bag = torch.searchsorted(offsets[:num_bags].contiguous(), position, right=True) - 1
    counted = torch.ones_like(flat) if padding_idx is None else (flat != padding_idx)
    scale = counted.to(weight.dtype)
    if per_sample_weights is not None:
        scale = scale * per_sample_weights.reshape(-1)
    rows = _embedding(flat, weight, padding_idx, max_norm, norm_type) * scale[:, None]
    sums = rows.new_zeros((num_bags, weight.shape[1])).index_add(0, bag, rows)
    if mode == "sum":
        return sums
    sizes = torch.bincount(bag, weights=counted.to(torch.float64), minlength=num_bags)
    return sums / sizes.clamp(min=1).to(sums.dtype)[:, None]


def _mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    terms = (input - target) ** 2
    reduction = _reduction(reduction, size_average, reduce)
    if weight is None:
        return _reduced(terms, reduction)
    if reduction == "mean":  # torch divides by the sum of the weights, not by their number
        return (weight * terms).sum() / weight.sum()
    return _reduced(weight * terms, reduction)


def _huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    difference = input - target
    size = difference.abs()
    terms = torch.where(size <= delta, 0.5 * difference**2, delta * (size - 0.5 * delta))
    return _reduced(terms if weight is None else weight * terms, reduction)


def _soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    terms = functional.softplus(-target * input)
    return _reduced(terms, _reduction(reduction, size_average, reduce))


def _reduced(terms: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return terms
    return terms.mean() if reduction == "mean" else terms.sum()


def _reduction(reduction: str, size_average: bool | None, reduce: bool | None) -> str:
    """The reduction, which may also be given by torch's two deprecated flags."""
    if size_average is None and reduce is None:
        return reduction
    return "none" if reduce is False else ("sum" if size_average is False else "mean")


_COMPOSITES: Replacements = {
    torch._weight_norm: _weight_norm,
    functional.hardsigmoid: _hardsigmoid,
    functional.embedding: _embedding,
    functional.embedding_bag: _embedding_bag,
}

_DECOMPOSED_LOSSES: Replacements = {
    functional.mse_loss: _mse_loss,
    functional.huber_loss: _huber_loss,
    functional.soft_margin_loss: _soft_margin_loss,
}
