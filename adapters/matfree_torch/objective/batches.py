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
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from matfree_torch.data.nested import map_tensors, tensors_of_batch
from matfree_torch.data.structure import BatchStructure, count_samples, split_batch
from matfree_torch.data.weights import Batch, BatchWeights, Normalizer, Observe
from matfree_torch.distributed.dtensors import full_tensor
from matfree_torch.objective.model_calls import loss_module

__all__ = ["CHECKSUM_RTOL", "Batch", "Batches", "Loss", "Normalizer", "checksum_of_batch"]

Loss = Callable[[Any, Any], Tensor]

# Passes, and processes, add in different orders, which changes checksums only by rounding.
CHECKSUM_RTOL = 1e-9
_WEIGHT_RTOL = 1e-6


@final
class Batches:
    """Data that can be iterated over repeatedly, and are the same in every pass.

    Parameters
    ----------
    data : a batch, or a re-iterable of batches
        A batch is (inputs, targets), where inputs is an object, a tuple of arguments or a
        mapping of keyword arguments; or one mapping or object that holds both.
    loss : function or None
        Its reduction determines the weights of the batches.
    normalizer : function, optional
        From a batch to the number that the loss divides its sum by.
    model : nn.Module, optional
        The signature of its ``forward`` helps to recognize a batch.
    observe : function, optional
        From a batch to the reduction of its loss, which determines its weight.
    batch : bool, optional
        Whether the data are one batch; by default their structure decides.
    ordered : bool
        Whether every pass must show the same batches in the same order. It must if random numbers
        are drawn per sample number, or if a layer normalizes over the batch.
    share : bool
        Whether other processes hold batches as well, so that this process may have none.

    Raises
    ------
    TypeError
        The data are neither a batch nor iterable, or can be iterated over only once.
    ValueError
        The structure of the data does not determine whether they are one batch.
    """

    def __init__(
        self,
        data: Any,
        loss: Loss | None,
        normalizer: Normalizer | None = None,
        *,
        model: nn.Module | None = None,
        observe: Observe | None = None,
        batch: bool | None = None,
        ordered: bool = False,
        share: bool = False,
    ) -> None:
        self._structure = BatchStructure(model, loss)
        self.single = self._structure.is_one_batch(data, batch)
        if not self.single:
            if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
                raise TypeError(
                    f"data is a {type(data).__name__}, a data set of samples, and batches are "
                    "needed; pass DataLoader(data, batch_size=...) without shuffling."
                )
            iterable = isinstance(data, Iterable) or hasattr(type(data), "__getitem__")
            if not iterable or isinstance(data, Tensor | str | bytes | Mapping):
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
        several = share or not self.single  # otherwise the weight of the batch has no influence
        self.weights = BatchWeights(self.loss, normalizer, observe, several=several)
        self.total: float | None = None
        """The sum of the weights; None before the first complete pass."""
        self.num_preceding = 0
        """The number of samples of processes with a lower rank, which are numbered first."""
        self._checksums: list[tuple[float, float]] = []
        self.after_pass: Callable[[], None] = lambda: None
        """Called at the end of every pass, also if it is not complete."""

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
        total, checksums = 0.0, []
        self.weights.start()
        for batch in self.unweighted():
            weight = self.weights.weight(batch) if self.averaged else 1.0
            if weight:  # a mean over targets that are all ignored is 0 / 0
                yield batch._replace(weight=weight)
            total += weight
            if batch.checksum is not None:
                checksums.append(batch.checksum)
        self._compare_with_previous_pass(total, checksums)

    def unweighted(self) -> Iterator[Batch]:
        """Iterate over the batches with the weight 1."""
        first = self.num_preceding
        try:
            for raw in self._raw_batches():
                inputs, targets = split_batch(raw)
                arguments = _recordable(self._structure.arguments(inputs, targets))
                checksum = None if self.single else checksum_of_batch(raw)
                batch = Batch(arguments, _recordable(targets), 1.0, first, checksum, raw)
                yield batch
                first += batch.samples
        finally:
            self.after_pass()

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

    def _raw_batches(self) -> Iterable[Any]:
        if self.single:
            return [self.data]
        if isinstance(self.data, Iterable) or not hasattr(self.data, "__len__"):
            return self.data  # type: ignore[no-any-return]
        return (self.data[i] for i in range(len(self.data)))

    def count(self) -> tuple[int, int]:
        """The numbers of samples and of batches, counted in a pass over the data."""
        samples = [
            count_samples(targets, inputs)
            for inputs, targets in map(split_batch, self._raw_batches())
        ]
        return sum(samples), len(samples)

    def reset(self) -> None:
        """Do not compare the next pass with the previous one, because the data have changed."""
        self.total, self._checksums = None, []
        self.weights.reset()

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


def _recordable(x: Any) -> Any:
    """The same tensors, with copies of those created in inference mode.

    Autograd does not save inference tensors for the backward pass.
    """
    return map_tensors(lambda t: t.clone() if t.is_inference() else t, x)


def checksum_of_batch(batch: Any) -> tuple[float, float]:
    """The checksum of a batch and its magnitude, which rounding errors are relative to.

    It is a sum over samples, so that it does not depend on their order.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for x in filter(torch.numel, map(full_tensor, tensors_of_batch(batch))):
        for part in x.detach().unbind() if x.is_nested else [x.detach()]:
            by_sample = _projected(part)
            total += torch.stack([by_sample.sum(), by_sample.abs().sum()]).cpu()
    return float(total[0]), float(total[1])


def _projected(x: Tensor) -> Tensor:
    """The inner products of the rows of a dense or sparse tensor with a fixed vector."""
    if x.is_complex():
        x = torch.view_as_real(x if x.layout == torch.strided else x.to_dense())
    if x.layout == torch.strided:
        rows = x.reshape(len(x) if x.ndim else 1, -1).to(torch.float64)
        index = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=x.device)
        return rows @ torch.cos(index)
    entries = x.to_sparse().coalesce()
    indices, values = entries.indices(), entries.values()
    values = values.reshape(len(values), -1).to(torch.float64)
    first = torch.ones_like(indices[0])  # the index of an entry in its row, as above
    for d in range(1, len(indices)):
        first = (first - 1) * x.shape[d] + indices[d] + 1
    within = torch.arange(values.shape[1], device=x.device)
    index = ((first - 1) * values.shape[1])[:, None] + within + 1
    terms = (values * torch.cos(index.to(torch.float64))).sum(dim=1)
    return terms.new_zeros(x.shape[0]).index_add(0, indices[0], terms)


def _sum(checksums: list[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(value for value, _ in checksums), math.fsum(size for _, size in checksums)


def _differ(before: list[tuple[float, float]], after: list[tuple[float, float]]) -> bool:
    if len(before) != len(after):
        return True
    pairs = zip(before, after, strict=True)
    return any(abs(a - b) > CHECKSUM_RTOL * (size + other) for (a, size), (b, other) in pairs)
