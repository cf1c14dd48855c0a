"""The data behind a loss: one batch or many, each with the weight that the loss gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

Normalizer = Callable[[Any], float]
Loss = Callable[[Any, Any], Tensor]


@final
class Batches:
    """Data that can be gone through again and again.

    Parameters
    ----------
    data : (inputs, targets), or a re-iterable of such batches
        inputs is a tensor, or a tuple of what the model takes.
    loss : the loss
        Its reduction says how the batches add up.
    normalizer : function, optional
        From a batch to what the loss divides its sum by.

    Raises
    ------
    TypeError
        The data can be gone through only once, or not at all.
    """

    def __init__(self, data: Any, loss: Loss, normalizer: Normalizer | None = None) -> None:
        self.single = _is_batch(data)
        if not self.single:
            if not isinstance(data, Iterable) or isinstance(data, Tensor | str | bytes | dict):
                raise TypeError(
                    "data must be a batch (inputs, targets) or a re-iterable of batches, a "
                    f"DataLoader for one: got {type(data).__name__}."
                )
            if hasattr(data, "__next__"):  # an iterator; iter(loader) would draw a seed
                raise TypeError(
                    f"data is a {type(data).__name__}, which is spent after one pass, and every "
                    "product needs one; pass the DataLoader itself, or list(data)."
                )
        self.data, self.loss, self.normalizer = data, loss, normalizer
        self.total: float | None = None

    @property
    def averaged(self) -> bool:
        """Whether the loss is a mean, rather than a sum, over what it is given."""
        return self.normalizer is not None or getattr(self.loss, "reduction", "mean") != "sum"

    def __iter__(self) -> Iterator[tuple[Any, Any, float]]:
        """Inputs, targets and weight of every batch; the weights add up to 1 for a mean.

        The total is known after the first pass only, so weights come undivided; who adds
        batches up divides by ``total`` at the end.
        """
        total = 0.0
        for batch in [self.data] if self.single else self.data:
            if not _is_batch(batch):
                raise TypeError(
                    f"a batch must be (inputs, targets): got {type(batch).__name__}; wrap the "
                    "loader so that it yields pairs."
                )
            inputs, targets = batch
            weight = self._weight(batch) if self.averaged else 1.0
            total += weight
            yield _recordable(inputs), _recordable(targets), weight
        self._close(total)

    def _close(self, total: float) -> None:
        """A whole pass is done: was it like the one before?"""
        if total == 0:
            raise ValueError("data holds no batch, or none that counts; is the loader exhausted?")
        if self.total is not None and abs(total - self.total) > 1e-6 * abs(self.total):
            raise ValueError(
                f"two passes over the data differ: {self.total:g} samples, then {total:g}; every "
                "product must see the same ones (drop_last with shuffle, or a sampler that "
                "draws anew?)."
            )
        self.total = total

    @property
    def divisor(self) -> float:
        """What the weighted sum over a pass is divided by."""
        return (self.total or 1.0) if self.averaged else 1.0

    def _weight(self, batch: Any) -> float:
        if self.normalizer is not None:
            return float(self.normalizer(batch))
        inputs, targets = batch
        if isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            return _counted_targets(self.loss, targets)
        if not isinstance(self.loss, nn.Module):
            return float(_samples(targets, inputs))  # a function is taken for a mean over samples
        if getattr(self.loss, "reduction", "mean") == "batchmean":
            return float(_samples(targets, inputs))
        return float(targets.numel() if isinstance(targets, Tensor) else _samples(targets, inputs))


def _recordable(x: Any) -> Any:
    """Tensors made in inference mode, copied: autograd refuses to save them."""
    if isinstance(x, tuple):
        return tuple(map(_recordable, x))
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x


def _is_batch(data: Any) -> bool:
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and (
            isinstance(data[0], Tensor)
            or (isinstance(data[0], tuple) and isinstance(data[1], Tensor) and len(data[0]) > 0)
        )
    )


def _counted_targets(loss: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> float:
    """What the loss divides by: its class weights, summed over the targets that count."""
    if targets.is_floating_point():  # class probabilities: one target a sample and position
        return float(targets.numel() / targets.shape[1 if targets.ndim > 1 else 0])
    counted = targets[targets != loss.ignore_index]
    if loss.weight is None:
        return float(counted.numel())
    return float(loss.weight.to(torch.float64)[counted].sum())


def _samples(targets: Any, inputs: Any) -> int:
    for x in (targets, inputs, *(inputs if isinstance(inputs, tuple) else ())):
        if isinstance(x, Tensor) and x.ndim > 0:
            return int(x.shape[0])
    return 1
