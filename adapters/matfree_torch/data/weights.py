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
        From a batch to the reduction of its loss.
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

    def start(self) -> None:
        """A pass over the data begins."""
        self._per_sample = None

    def reset(self) -> None:
        """Forget what was observed, because the loss or the data have changed."""
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
        if isinstance(batch.raw, Mapping) and (self._loss is None or _has_positions(batch.raw)):
            return _weight_of_labels(batch)
        reduction = self._reduction(batch)
        if reduction.is_sum:
            self._refuse_sum()
        if reduction.divisor is not None:
            self._compare(["recognized"], 1.0)
            return reduction.divisor
        if isinstance(batch.raw, Mapping):
            return _weight_of_labels(batch)
        self._compare(list(reduction.candidates) or _possible_divisors(batch), batch.samples)
        return float(batch.samples)

    def _reduction(self, batch: Batch) -> Reduction:
        """The reduction of the loss of this batch, evaluated once for each batch."""
        if self._observe is None:
            return Reduction(None, False, ())
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
        if len(numbers) != len(self._per_sample) or not all(map(_close, numbers, self._per_sample)):
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
            "multiple than in other batches, so that batches have other weights. Pass normalizer=, "
            "such as normalizer=lambda batch: len(batch[1]) for a mean over samples, or "
            "batch[1].numel() for a mean over all targets."
        )


def _possible_divisors(batch: Batch) -> list[float]:
    """What a mean may divide by: elements of the targets, and labels that are not ignored."""
    tensors = list(tensors_of_batch(batch.targets))
    labels = [y for y in tensors if not y.is_floating_point() and not y.is_complex()]
    return [
        *(float(y.numel()) for y in tensors),
        *(float((y.to_dense() != _IGNORED_LABEL).sum()) for y in labels),
    ]


def _has_positions(batch: Mapping[str, Any]) -> bool:
    """Whether a batch has class labels for each of several positions of a sample."""
    labels = batch.get("labels")
    return isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point()


def _weight_of_labels(batch: Batch) -> float:
    """The number of samples of a mapping batch whose labels are not ignored."""
    labels = batch.raw.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return float(batch.samples)
    if _has_positions(batch.raw):
        raise ValueError(
            f"the labels have shape {tuple(labels.shape)}, which does not determine how many of "
            "them the loss of each batch averages over; pass normalizer=lambda batch: "
            f"(batch['labels'] != {_IGNORED_LABEL}).sum(), or, for a model that predicts the next "
            f"token, (batch['labels'][:, 1:] != {_IGNORED_LABEL}).sum()."
        )
    return float((labels != _IGNORED_LABEL).sum())


def _loss_name(loss: Any) -> str:
    return str(getattr(loss, "__qualname__", type(loss).__qualname__))


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    return bool(abs(a - b) <= _DIVISOR_RTOL * abs(b))
