r"""The data behind a loss: one or many batches, each with its weight in the loss.

A pass over the data computes a sum over batches. A loss that is a mean over its samples is
multiplied by the number of samples of each batch, its weight, and the sum of all batches is
divided by the sum of the weights:

.. math::

    L = \frac{\sum_b w_b L_b}{\sum_b w_b} .

Every matvec is one pass and must see the same data, so that checksums of the batches are compared
between passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from matfree_torch.distributed.dtensors import full_tensor
from matfree_torch.objective.model_calls import loss_module
from matfree_torch.objective.nested import map_tensors, tensors_in

Normalizer = Callable[[Any], float]
Loss = Callable[[Any, Any], Tensor]

# Passes, and processes, add in different orders, which changes checksums only by rounding.
CHECKSUM_RTOL = 1e-9
_WEIGHT_RTOL = 1e-6
_IGNORED_LABEL = -100  # the label that torch's losses and Hugging Face's models skip


class Batch(NamedTuple):
    """One batch of a pass."""

    inputs: Any
    """A tensor, a tuple of arguments, or a mapping of keyword arguments."""
    targets: Any
    """The second argument of the loss; the whole mapping if the batch is a mapping."""
    weight: float
    """The divisor in the mean that the loss computes; 1 if the loss is a sum."""
    first: int
    """The number of samples that precede the batch in the pass."""
    checksum: tuple[float, float] | None
    """The checksum of the batch and its magnitude; None if the batch is the only one."""

    @property
    def samples(self) -> int:
        """The number of samples of the batch."""
        return _num_samples(self.targets, self.inputs)


@final
class Batches:
    """Data that can be iterated over repeatedly, and are the same in every pass.

    Parameters
    ----------
    data : a batch, or a re-iterable of batches
        A batch is (inputs, targets), where inputs is a tensor, a tuple of arguments or a
        mapping of keyword arguments; or one mapping that holds both.
    loss : function or None
        Its reduction determines the weights of the batches.
    normalizer : function, optional
        From a batch to the number that the loss divides its sum by.
    ordered : bool
        Whether every pass must show the same batches in the same order. It must if random numbers
        are drawn per sample number, or if a layer normalizes over the batch.
    share : bool
        Whether other processes hold batches as well, so that this process may have none.

    Raises
    ------
    TypeError
        The data are neither a batch nor iterable, or can be iterated over only once.
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
                    "or a re-iterable of batches, such as a DataLoader: got "
                    f"{type(data).__name__}."
                )
            if hasattr(data, "__next__"):  # calling iter(data) would draw a seed from a DataLoader
                raise TypeError(
                    f"data is a {type(data).__name__}, which is exhausted after one pass, and "
                    "every matvec needs a pass; pass the DataLoader itself, or list(data)."
                )
        self.data, self.normalizer, self.ordered, self.share = data, normalizer, ordered, share
        self.loss = loss_module(loss) or loss
        self.total: float | None = None
        """The sum of the weights; None before the first complete pass."""
        self.num_preceding = 0
        """The number of samples of processes with a lower rank, which are numbered first."""
        self._checksums: list[tuple[float, float]] = []

    @property
    def averaged(self) -> bool:
        """Whether the loss is a mean rather than a sum."""
        return self.normalizer is not None or getattr(self.loss, "reduction", "mean") != "sum"

    @property
    def divisor(self) -> float:
        """The number that the weighted sum over a pass is divided by."""
        return (self.total or 1.0) if self.averaged else 1.0

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches with their weights.

        The sum of the weights is known only after the first pass, so the weights are not
        normalized; the caller divides its sum by ``divisor`` at the end.
        """
        total, first, checksums = 0.0, self.num_preceding, []
        for raw in [self.data] if self.single else self.data:
            if not _is_batch(raw):
                raise TypeError(
                    f"a batch must be (inputs, targets) or a mapping: got {type(raw).__name__}; "
                    "wrap the loader so that it yields pairs."
                )
            inputs, targets = _inputs_and_targets(raw)
            weight = self._weight(raw) if self.averaged else 1.0
            checksum = None if self.single else checksum_of_batch(raw)
            if weight:  # a mean over targets that are all ignored is 0 / 0
                yield Batch(_recordable(inputs), _recordable(targets), weight, first, checksum)
            total, first = total + weight, first + _num_samples(targets, inputs)
            if checksum is not None:
                checksums.append(checksum)
        self._compare_with_previous_pass(total, checksums)

    def _compare_with_previous_pass(
        self, total: float, checksums: list[tuple[float, float]]
    ) -> None:
        if total == 0 and not self.share:
            raise ValueError(
                "data holds no batch, or none with a weight above 0; pass a loader that is not "
                "exhausted, and targets that are not all ignored."
            )
        if self.total is not None:
            if abs(total - self.total) > _WEIGHT_RTOL * abs(self.total):
                self._refuse(f"{self.total:g} samples, then {total:g}")
            if _differ([_sum(self._checksums)], [_sum(checksums)]):
                self._refuse("the samples are not the same")
            if self.ordered and _differ(self._checksums, checksums):
                self._refuse(
                    "the same samples come in different batches, and the result depends on their "
                    "order"
                )
        self.total, self._checksums = total, checksums

    def count(self) -> tuple[int, int]:
        """The numbers of samples and of batches, counted in a pass over the data."""
        samples = [
            _num_samples(targets, inputs)
            for inputs, targets in map(
                _inputs_and_targets, [self.data] if self.single else self.data
            )
        ]
        return sum(samples), len(samples)

    def reset(self) -> None:
        """Do not compare the next pass with the previous one, because the data have changed."""
        self.total, self._checksums = None, []

    def _refuse(self, difference: str) -> None:
        sampler = type(getattr(self.data, "sampler", None)).__name__
        causes = {
            "RandomSampler": "the DataLoader shuffles with its own generator",
            "WeightedRandomSampler": "its WeightedRandomSampler draws new samples in every pass",
        }
        guess = (
            "possible causes are drop_last with shuffle, random augmentation, and a random sampler"
        )
        raise ValueError(
            f"two passes over the data differ: {difference}; every matvec must see the same "
            f"samples ({causes.get(sampler, guess)}). Pass a loader without shuffling, or "
            "list(loader)."
        )

    def _weight(self, batch: Any) -> float:
        if self.normalizer is not None:
            return float(self.normalizer(batch))
        if isinstance(batch, Mapping):
            return _weight_of_labels(batch, self.single)
        inputs, targets = batch
        if isinstance(self.loss, nn.CrossEntropyLoss | nn.NLLLoss):
            return _weight_of_classes(self.loss, targets)
        if not isinstance(self.loss, nn.Module):
            # A function is assumed to be a mean over samples.
            return float(_num_samples(targets, inputs))
        if getattr(self.loss, "reduction", "mean") == "batchmean":
            return float(_num_samples(targets, inputs))
        counted = targets.numel() if isinstance(targets, Tensor) else _num_samples(targets, inputs)
        return float(counted)


def _inputs_and_targets(raw: Any) -> tuple[Any, Any]:
    """The inputs and targets of a batch; a mapping serves as both."""
    return (raw, raw) if isinstance(raw, Mapping) else tuple(raw)


def _recordable(x: Any) -> Any:
    """The same tensors, with copies of those created in inference mode.

    Autograd does not save inference tensors for the backward pass.
    """
    return map_tensors(lambda t: t.clone() if t.is_inference() else t, x)


def _is_batch(data: Any) -> bool:
    if isinstance(data, Mapping):
        return any(isinstance(value, Tensor) for value in data.values())
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    inputs, targets = data
    # A pair of pairs may be a list of two batches, so that arguments need a tensor as targets.
    several = isinstance(inputs, tuple | Mapping) and len(inputs) > 0
    return isinstance(inputs, Tensor) or (several and isinstance(targets, Tensor))


def _weight_of_classes(loss: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> float:
    """The sum of the class weights of all targets that are not ignored."""
    if targets.is_floating_point():  # class probabilities: one target per sample and position
        return float(targets.numel() / targets.shape[1 if targets.ndim > 1 else 0])
    counted = targets[targets != loss.ignore_index]
    if loss.weight is None:
        return float(counted.numel())
    return float(loss.weight.to(torch.float64)[counted].sum())


def _weight_of_labels(batch: Mapping[str, Any], single: bool) -> float:
    """The number of samples of a mapping batch whose labels are not ignored."""
    labels = batch.get("labels")
    several = isinstance(labels, Tensor) and labels.ndim > 1
    if not isinstance(labels, Tensor) or labels.is_floating_point() or (several and single):
        return float(_num_samples(labels, batch))
    if several:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)}, which does not determine how many of "
            "them the loss of each batch averages over; pass normalizer=lambda batch: "
            f"(batch['labels'] != {_IGNORED_LABEL}).sum(), or, for a model that predicts the next "
            f"token, (batch['labels'][:, 1:] != {_IGNORED_LABEL}).sum()."
        )
    return float((labels != _IGNORED_LABEL).sum())


def _num_samples(targets: Any, inputs: Any) -> int:
    return next((len(x) for x in (*tensors_in(targets), *tensors_in(inputs)) if x.ndim > 0), 1)


def checksum_of_batch(batch: Any) -> tuple[float, float]:
    """The checksum of a batch and its magnitude, which rounding errors are relative to.

    It is a sum over samples, so that it does not depend on their order.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for x in filter(torch.numel, map(full_tensor, tensors_in(batch))):
        rows = x.detach().reshape(len(x) if x.ndim else 1, -1).to(torch.float64)
        index = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=x.device)
        by_sample = rows @ torch.cos(index)
        total += torch.stack([by_sample.sum(), by_sample.abs().sum()]).cpu()
    return float(total[0]), float(total[1])


def _sum(checksums: list[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(value for value, _ in checksums), math.fsum(size for _, size in checksums)


def _differ(before: list[tuple[float, float]], after: list[tuple[float, float]]) -> bool:
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(abs(a - b) > CHECKSUM_RTOL * (size + other) for (a, size), (b, other) in pairs)
