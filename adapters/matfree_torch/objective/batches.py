"""The data behind a loss: one batch or many, each with the weight that the loss gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from matfree_torch.distributed.dtensors import full_tensor
from matfree_torch.objective.model_calls import loss_module

Normalizer = Callable[[Any], float]
Loss = Callable[[Any, Any], Tensor]

_SAME = 1e-9  # relative; sums over a pass differ by the rounding of their order alone
_IGNORED = -100  # the label that torch's losses and Hugging Face's models skip


class Batch(NamedTuple):
    """One batch of a pass."""

    inputs: Any
    """A tensor, a tuple of arguments, or a mapping of keyword arguments."""
    targets: Any
    """What the loss compares with; for a mapping batch the whole mapping."""
    weight: float
    """What the loss divides its sum by; 1 where it is a sum."""
    first: int
    """Samples that came before it in this pass."""
    checksum: tuple[float, float] | None
    """A number that tells it from other batches, and its size; None for the only one."""

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return _samples(self.targets, self.inputs)


@final
class Batches:
    """Data that can be gone through again and again, and is the same every time.

    Parameters
    ----------
    data : a batch, or a re-iterable of batches
        A batch is (inputs, targets), where inputs is a tensor, a tuple of arguments or a
        mapping of keyword arguments; or one mapping that holds both.
    loss : the loss
        Its reduction says how the batches add up.
    normalizer : function, optional
        From a batch to what the loss divides its sum by.
    ordered : bool
        Whether the batches must be the same ones in the same order, where samples are told
        apart by their numbers or where a batch has statistics of its own.
    share : bool
        Whether other processes hold batches too, so that there may be none here.

    Raises
    ------
    TypeError
        The data can be gone through only once, or not at all.
    """

    def __init__(
        self,
        data: Any,
        loss: Loss | None,
        normalizer: Normalizer | None = None,
        *,
        ordered: bool = False,
        share: bool = False,
    ) -> None:
        self.single = _is_batch(data)
        if not self.single:
            if not isinstance(data, Iterable) or isinstance(data, Tensor | str | bytes | Mapping):
                raise TypeError(
                    "data must be a batch, (inputs, targets) or a mapping of keyword arguments, "
                    f"or a re-iterable of batches, a DataLoader for one: got {type(data).__name__}."
                )
            if hasattr(data, "__next__"):  # an iterator; iter(loader) would draw a seed
                raise TypeError(
                    f"data is a {type(data).__name__}, which is spent after one pass, and every "
                    "product needs one; pass the DataLoader itself, or list(data)."
                )
        self.data, self.normalizer, self.ordered, self.share = data, normalizer, ordered, share
        self.loss = loss_module(loss) or loss
        self.total: float | None = None
        self.before = 0
        """Samples that other processes hold, and that count before the first one here."""
        self._seen: list[tuple[float, float]] = []

    @property
    def averaged(self) -> bool:
        """Whether the loss is a mean, rather than a sum, over what it is given."""
        return self.normalizer is not None or getattr(self.loss, "reduction", "mean") != "sum"

    def __iter__(self) -> Iterator[Batch]:
        """Every batch, with its weight.

        The total is known after the first pass only, so weights come undivided; who adds
        batches up divides by ``divisor`` at the end.
        """
        total, first, seen = 0.0, self.before, []
        for raw in [self.data] if self.single else self.data:
            if not _is_batch(raw):
                raise TypeError(
                    f"a batch must be (inputs, targets) or a mapping: got {type(raw).__name__}; "
                    "wrap the loader so that it yields pairs."
                )
            inputs, targets = _parts(raw)
            weight = self._weight(raw) if self.averaged else 1.0
            mark = None if self.single else checksum_of_batch(raw)
            if weight:  # a mean over targets that are all ignored is 0 / 0
                yield Batch(_recordable(inputs), _recordable(targets), weight, first, mark)
            total, first = total + weight, first + _samples(targets, inputs)
            if mark is not None:
                seen.append(mark)
        self._close(total, seen)

    def _close(self, total: float, seen: list[tuple[float, float]]) -> None:
        """A whole pass is done: was it like the one before?"""
        if total == 0 and not self.share:
            raise ValueError("data holds no batch, or none that counts; is the loader exhausted?")
        if self.total is not None:
            if abs(total - self.total) > 1e-6 * abs(self.total):
                self._refuse(f"{self.total:g} samples, then {total:g}")
            if _differ([_sum(self._seen)], [_sum(seen)]):
                self._refuse("the samples themselves are others")
            if self.ordered and _differ(self._seen, seen):
                self._refuse("the same samples come in other batches, and here their order counts")
        self.total, self._seen = total, seen

    def count(self) -> tuple[int, int]:
        """How many samples and batches there are: a pass over the data that does nothing else."""
        samples = [
            _samples(targets, inputs)
            for inputs, targets in map(_parts, [self.data] if self.single else self.data)
        ]
        return sum(samples), len(samples)

    def reset(self) -> None:
        """Take the next pass for the first: the data are meant to be others."""
        self.total, self._seen = None, []

    def _refuse(self, difference: str) -> None:
        sampler = type(getattr(self.data, "sampler", None)).__name__
        causes = {
            "RandomSampler": "the DataLoader shuffles with a generator of its own",
            "WeightedRandomSampler": "its WeightedRandomSampler draws anew",
        }
        guess = "drop_last with shuffle, random augmentation, or a sampler that draws anew?"
        raise ValueError(
            f"two passes over the data differ: {difference}; every product must see the same ones "
            f"({causes.get(sampler, guess)}). Pass a loader without shuffling, or list(loader)."
        )

    @property
    def divisor(self) -> float:
        """What the weighted sum over a pass is divided by."""
        return (self.total or 1.0) if self.averaged else 1.0

    def _weight(self, batch: Any) -> float:
        if self.normalizer is not None:
            return float(self.normalizer(batch))
        if isinstance(batch, Mapping):
            return _counted_labels(batch, self.single)
        inputs, targets = batch
        if isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            return _counted_targets(self.loss, targets)
        if not isinstance(self.loss, nn.Module):
            return float(_samples(targets, inputs))  # a function is taken for a mean over samples
        if getattr(self.loss, "reduction", "mean") == "batchmean":
            return float(_samples(targets, inputs))
        return float(targets.numel() if isinstance(targets, Tensor) else _samples(targets, inputs))


def _parts(raw: Any) -> tuple[Any, Any]:
    """Inputs and targets; a mapping is both."""
    return (raw, raw) if isinstance(raw, Mapping) else tuple(raw)


def _recordable(x: Any) -> Any:
    """Tensors made in inference mode, copied: autograd refuses to save them."""
    if isinstance(x, tuple):
        return tuple(map(_recordable, x))
    if isinstance(x, Mapping):
        return {name: _recordable(value) for name, value in x.items()}
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x


def _is_batch(data: Any) -> bool:
    if isinstance(data, Mapping):
        return any(isinstance(value, Tensor) for value in data.values())
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    inputs, targets = data
    several = isinstance(inputs, tuple | Mapping) and len(inputs) > 0
    return isinstance(inputs, Tensor) or (several and isinstance(targets, Tensor))


def _counted_targets(loss: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> float:
    """What the loss divides by: its class weights, summed over the targets that count."""
    if targets.is_floating_point():  # class probabilities: one target a sample and position
        return float(targets.numel() / targets.shape[1 if targets.ndim > 1 else 0])
    counted = targets[targets != loss.ignore_index]
    if loss.weight is None:
        return float(counted.numel())
    return float(loss.weight.to(torch.float64)[counted].sum())


def _counted_labels(batch: Mapping[str, Any], single: bool) -> float:
    """The samples of a mapping batch, without labels that are ignored."""
    labels = batch.get("labels")
    several = isinstance(labels, Tensor) and labels.ndim > 1
    if not isinstance(labels, Tensor) or labels.is_floating_point() or (several and single):
        return float(_samples(labels, batch))
    if several:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)}, and nothing tells how many of them the "
            "loss of each batch is a mean over; pass normalizer=lambda batch: "
            f"(batch['labels'] != {_IGNORED}).sum(), or, for a model that predicts the next token, "
            f"(batch['labels'][:, 1:] != {_IGNORED}).sum()."
        )
    return float((labels != _IGNORED).sum())


def _samples(targets: Any, inputs: Any) -> int:
    return next((len(x) for x in (*tensors_in(targets), *tensors_in(inputs)) if x.ndim > 0), 1)


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list | Mapping):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from tensors_in(item)


def checksum_of_batch(batch: Any) -> tuple[float, float]:
    """A number that tells batches apart whatever the order of their samples, and its size."""
    total = torch.zeros(2, dtype=torch.float64)
    for x in filter(torch.numel, map(full_tensor, tensors_in(batch))):
        rows = x.detach().reshape(len(x) if x.ndim else 1, -1).to(torch.float64)
        places = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=x.device)
        marks = rows @ torch.cos(places)
        total += torch.stack([marks.sum(), marks.abs().sum()]).cpu()
    return float(total[0]), float(total[1])


def _sum(digests: list[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(value for value, _ in digests), math.fsum(size for _, size in digests)


def _differ(before: list[tuple[float, float]], after: list[tuple[float, float]]) -> bool:
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(abs(a - b) > _SAME * (size + other) for (a, size), (b, other) in pairs)
