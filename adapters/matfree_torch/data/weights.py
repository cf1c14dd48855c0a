"""One batch of the data, and its weight in a loss that is a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, final

from torch import Tensor, nn

from matfree_torch.data.nested import tensors_of_batch
from matfree_torch.data.reduction import Reduction, class_count
from matfree_torch.data.structure import count_samples

Normalizer = Callable[[Any], float]

_DIVISOR_RTOL = 1e-6
_IGNORED_LABEL = -100  # the label that torch's losses and Hugging Face's models skip
_ELEMENTWISE = (
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss),
    *(nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.KLDivLoss),
)


class Batch(NamedTuple):
    """One batch of a pass."""

    inputs: Any
    """An object, a tuple of arguments, or a mapping of keyword arguments."""
    targets: Any
    """The second argument of the loss; the whole batch if it is a mapping or an object."""
    weight: float
    """The divisor in the mean that the loss computes; 1 if the loss is a sum."""
    first: int
    """The number of samples that precede the batch in the pass."""
    checksum: tuple[float, float] | None
    """The checksum of the batch and its magnitude; None if the batch is the only one."""
    raw: Any
    """The batch as the data hold it."""

    @property
    def samples(self) -> int:
        """The number of samples of the batch."""
        return count_samples(self.targets, self.inputs)


_CURES = (
    "Pass normalizer=, such as normalizer=lambda batch: len(batch[1]) for a mean over samples, or "
    "batch[1].numel() for a mean over all targets",
    "Pass normalizer=, such as normalizer=lambda batch: (batch[name] != -100).sum() with the name "
    "of the targets, for a mean over all that are not ignored",
)
"""For batches that are pairs, and for mappings."""

Observe = Callable[[Batch], Reduction]


@final
class BatchWeights:
    """The weights of batches in the mean over all of them.

    The divisor of torch's losses is known. That of other losses is observed. If it cannot be
    recognized, the loss is assumed to be a mean over samples, unless another divisor is possible
    that gives batches other weights.

    Parameters
    ----------
    loss : function or None
        One of torch's losses is given as a module.
    normalizer : function, optional
        From a batch to the divisor.
    observe : function, optional
        From a batch to the reduction of its loss. Without it, reductions are recorded before.
    several : bool
        Whether there are several batches. The weight of a single one has no influence, and is
        not observed.

    Raises
    ------
    ValueError
        The loss is a sum over samples, or batches have different weights depending on what the
        loss divides by.
    """

    def __init__(
        self, loss: Any, normalizer: Normalizer | None, observe: Observe | None, *, several: bool
    ) -> None:
        self._loss, self._normalizer, self._several = loss, normalizer, several
        self._observe = observe
        self._observed: dict[Any, Reduction] = {}
        self._per_sample: list[Any] | None = None
        self._cure = ""

    @property
    def are_observed(self) -> bool:
        """Whether weights depend on what the loss divides by, which is not known in advance."""
        known = type(self._loss) in (nn.CrossEntropyLoss, nn.NLLLoss, *_ELEMENTWISE)
        return self._normalizer is None and not known and self._several

    @property
    def divisors_per_sample(self) -> list[Any] | None:
        """The possible divisors of the last pass, as multiples of the number of samples.

        None if no batch of the pass was observed.
        """
        return self._per_sample

    def record(self, batch: Batch, reduction: Reduction) -> None:
        """Store what the loss of a batch was observed to divide by."""
        self._observed[batch.checksum] = reduction

    def start(self) -> None:
        """A pass over the data begins."""
        self._per_sample = None

    def reset(self) -> None:
        """Forget what was observed, because the loss or the data have changed."""
        if self._observe is not None:
            self._observed = {}

    def weight(self, batch: Batch) -> float:
        """The number that the loss of a batch divides its sum by."""
        if self._normalizer is not None:
            return float(self._normalizer(batch.raw))
        if type(self._loss) in (nn.CrossEntropyLoss, nn.NLLLoss):
            if isinstance(batch.targets, Tensor):
                return class_count(batch.targets, self._loss.weight, self._loss.ignore_index)
        elif type(self._loss) in _ELEMENTWISE and isinstance(batch.targets, Tensor):
            per_batch = self._loss.reduction == "batchmean"
            return float(batch.samples if per_batch else batch.targets.numel())
        if not self._several:
            return float(batch.samples)
        reduction = self._reduction(batch) if self._loss is not None else Reduction(None, False, ())
        if reduction.is_sum:
            self._refuse_sum()
        if reduction.divisor is not None:
            self._compare(["recognized"], 1.0)
            return reduction.divisor
        if _has_labels(batch.raw):
            return _weight_of_labels(batch)
        self._cure = _CURES[isinstance(batch.raw, Mapping)]
        self._compare(list(reduction.candidates) or _possible_divisors(batch), batch.samples)
        return float(batch.samples)

    def _reduction(self, batch: Batch) -> Reduction:
        """The reduction of the loss of this batch, evaluated once for each batch."""
        if self._observe is None:
            if self._observed and batch.checksum not in self._observed:
                raise ValueError(
                    f"what the loss, {_loss_name(self._loss)}, divides by was observed at "
                    "construction, and the data have changed since; create the operator again, or "
                    "pass normalizer=, a function of a batch."
                )
            return self._observed.get(batch.checksum, Reduction(None, False, ()))
        if batch.checksum is None:
            return self._observe(batch)
        if batch.checksum not in self._observed:
            self._observed[batch.checksum] = self._observe(batch)
        return self._observed[batch.checksum]

    def _compare(self, divisors: list[Any], samples: float) -> None:
        """Refuse divisors that are no multiples of the number of samples, the same in a pass."""
        numbers: list[Any] = [x if isinstance(x, str) else x / samples for x in divisors]
        if self._per_sample is None:
            self._per_sample = numbers
        if not same_divisors(numbers, self._per_sample):
            self._refuse(samples, divisors)

    def _refuse_sum(self) -> NoReturn:
        raise ValueError(
            f"the loss, {_loss_name(self._loss)}, is a sum over the terms of a batch, but batches "
            "are averaged unless loss.reduction is 'sum'; set loss.reduction = 'sum' to add the "
            "batches, or pass normalizer=, a function of a batch, to average them."
        )

    def _refuse(self, samples: float, divisors: list[Any]) -> NoReturn:
        raise ValueError(
            f"it is not known what the loss, {_loss_name(self._loss)}, divides its sum by: a batch "
            f"has {samples:g} samples, but the divisor may be {divisors}, which is another "
            f"multiple than in other batches, so that batches have other weights. {self._cure}."
        )


def _possible_divisors(batch: Batch) -> list[float]:
    """What a mean may divide by: elements of the targets, and labels that are not ignored."""
    tensors = list(tensors_of_batch(batch.targets))
    labels = [y for y in tensors if not y.is_floating_point() and not y.is_complex()]
    return [
        *(float(y.numel()) for y in tensors),
        *(float((y.to_dense() != _IGNORED_LABEL).sum()) for y in labels),
    ]


def _has_labels(batch: Any) -> bool:
    """Whether a batch is a mapping with class labels, as models of Hugging Face take it."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    return isinstance(labels, Tensor) and not labels.is_floating_point()


def _weight_of_labels(batch: Batch) -> float:
    """The number of samples of a mapping batch whose labels are not ignored."""
    labels = batch.raw["labels"]
    if labels.ndim > 1:
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)}, which does not determine how many of "
            "them the loss of each batch averages over; pass normalizer=lambda batch: "
            f"(batch['labels'] != {_IGNORED_LABEL}).sum(), or, for a model that predicts the next "
            f"token, (batch['labels'][:, 1:] != {_IGNORED_LABEL}).sum()."
        )
    return float((labels != _IGNORED_LABEL).sum())


def _loss_name(loss: Any) -> str:
    if loss is None:
        return "which the model computes itself"
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


def same_divisors(a: list[Any], b: list[Any]) -> bool:
    """Whether two batches have the same possible divisors, relative to their samples."""
    return len(a) == len(b) and all(map(_close, a, b))


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    return bool(abs(a - b) <= _DIVISOR_RTOL * abs(b))
