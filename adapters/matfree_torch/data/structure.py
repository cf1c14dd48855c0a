"""What is one batch, and what a model is called with: decided by structure.

A batch is a pair (inputs, targets), or one mapping or object that holds both. Two pairs in a list
or tuple can be two batches, or the inputs and the targets of one. The signature of the model, the
loss, and the types, dimensions and data types of the tensors decide. If they do not, the caller
has to.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, final

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from matfree_torch.data.nested import tensors_of_batch


@final
class BatchStructure:
    """Recognizes batches of a model and a loss.

    Parameters
    ----------
    model : nn.Module or None
        None accepts any arguments.
    loss : function or None
    """

    def __init__(self, model: nn.Module | None, loss: Any) -> None:
        self._model, self._loss = model, loss

    def is_one_batch(self, data: Any, batch: bool | None) -> bool:
        """Whether data are one batch rather than several.

        Parameters
        ----------
        data : a batch, or an iterable of batches
        batch : bool, optional
            The answer, if the caller knows it.

        Raises
        ------
        TypeError
            ``batch`` is True and data are no batch.
        ValueError
            The structure does not determine the answer.
        """
        if batch is not None:
            if batch:
                split_batch(data)
            return batch
        if not _is_pair(data):
            return _is_single_object(data)
        first, second = data
        if not (_can_be_batch(first) and _can_be_batch(second)):
            return True
        one, several = self._can_be_pair(first, second), self._can_be_batches(first, second)
        if one != several:
            return one
        if not one:  # the error of the model explains more than one from here
            return isinstance(data, tuple)
        tuples = isinstance(data, tuple) and isinstance(first, tuple)
        if tuples and not accepts(self._model, first):  # one argument of the model, or a batch
            raise ValueError(_ambiguous(data, first))
        return _by_outer_type(data, first, second)

    def arguments(self, inputs: Any, targets: Any) -> Any:
        """The inputs of a batch, with lists of arguments or samples replaced by tuples.

        The default collation of a DataLoader makes a list of several inputs, which are the
        arguments of the model. A list of images, one for each sample, is one argument.
        """
        if not isinstance(inputs, list | tuple) or _is_named(inputs):
            return inputs
        unpacked, whole = (accepts(self._model, tuple(inputs)), accepts(self._model, (inputs,)))
        if isinstance(inputs, tuple):  # documented as the arguments
            detection = _are_samples_with_mappings(inputs, targets)
            return (inputs,) if whole and (detection or not unpacked) else inputs
        if unpacked and whole:
            unpacked = not _is_list_of_samples(inputs, targets)
        return tuple(inputs) if unpacked or not whole else (inputs,)

    def _can_be_pair(self, inputs: Any, targets: Any) -> bool:
        if self._loss is None:  # the model computes its loss from the inputs alone
            return False
        own = type(self._loss).__module__ == nn.modules.loss.__name__
        return not own and self._accepts_inputs(inputs)

    def _can_be_batches(self, first: Any, second: Any) -> bool:
        return _outline(first) == _outline(second) and all(
            self._accepts_inputs(split_batch(batch)[0]) for batch in (first, second)
        )

    def _accepts_inputs(self, inputs: Any) -> bool:
        return any(accepts(self._model, *call) for call in possible_calls(inputs))


def split_batch(raw: Any) -> tuple[Any, Any]:
    """The inputs and targets of a batch; a mapping or an object serves as both.

    Raises
    ------
    TypeError
        It is no batch.
    """
    if _is_pair(raw):
        return raw[0], raw[1]
    if isinstance(raw, Mapping) or _is_object(raw):
        return raw, raw
    length = f" of length {len(raw)}" if isinstance(raw, tuple | list) else ""
    raise TypeError(
        "a batch must be a pair (inputs, targets), or one mapping or object that holds both: got "
        f"{type(raw).__name__}{length}; wrap the loader so that it yields pairs."
    )


def possible_calls(inputs: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The positional and keyword arguments that inputs may stand for, the documented ones first."""
    whole: tuple[tuple[Any, ...], dict[str, Any]] = ((inputs,), {})
    if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
        return [((), dict(inputs)), whole]
    if isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence):
        unpacked: tuple[tuple[Any, ...], dict[str, Any]] = (tuple(inputs), {})
        return [unpacked, whole] if isinstance(inputs, tuple) else [whole, unpacked]
    return [whole]


def call_arguments(model: nn.Module | None, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments with which a model is called on these inputs."""
    calls = possible_calls(inputs)
    return next((call for call in calls if accepts(model, *call)), calls[0])


def accepts(
    model: nn.Module | None, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether the signature of a model's ``forward`` allows these arguments."""
    if model is None:
        return True
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a scripted module may have none
        return True
    try:
        signature.bind(*args, **(kwargs or {}))
    except TypeError:
        return False
    return True


def count_samples(*parts: Any) -> int:
    """The number of samples of a batch, from the first part that has a number of them."""
    return next((count for part in parts if (count := _samples_in(part)) is not None), 1)


def _by_outer_type(data: Any, first: Any, second: Any) -> bool:
    """Whether two pairs are one batch, if the model and the loss accept both readings."""
    pairs = isinstance(first, tuple | list) and isinstance(second, tuple | list)
    tensors = pairs and all(isinstance(x, Tensor) for x in (*first, *second))
    if isinstance(data, tuple) and isinstance(first, tuple) and tensors:
        lengths = [[len(x) if x.ndim else 1 for x in part] for part in (first, second)]
        agree = [len(set(part)) == 1 for part in lengths]
        if not (all(agree) and lengths[0] != lengths[1]):
            return True
    if isinstance(data, list) and not (isinstance(first, list) and tensors):
        return False
    raise ValueError(_ambiguous(data, first))


def _ambiguous(data: Any, first: Any) -> str:
    return (
        f"data is a {type(data).__name__} of two {type(first).__name__}s, which may be two batches "
        "or the inputs and targets of one; pass batch=True for one batch, or batch=False for two."
    )


def _is_list_of_samples(inputs: list[Any], targets: Any) -> bool:
    """Whether a list has one item for each sample, rather than one for each argument."""
    if all(isinstance(x, str | bytes) for x in inputs):
        return True
    samples = _samples_in(targets)
    listed = samples == len(inputs)
    collated = samples is not None and _samples_in(inputs[0]) == samples
    if listed == collated:
        raise ValueError(
            f"the inputs of a batch are a list of {len(inputs)} items, which may be the arguments "
            "of the model, or one argument with one item for each sample; pass a tuple of the "
            "arguments, (a, b), or a tuple that holds the list, ([a, b],)."
        )
    return listed


def _are_samples_with_mappings(inputs: tuple[Any, ...], targets: Any) -> bool:
    """Whether inputs are images and targets the mappings that belong to them, as in detection."""
    return (
        isinstance(targets, tuple | list)
        and len(targets) == len(inputs)
        and all(isinstance(y, Mapping) for y in targets)
        and all(isinstance(x, Tensor) for x in inputs)
    )


def _samples_in(x: Any) -> int | None:
    """The number of samples in tensors, or in a list with one item for each sample."""
    if isinstance(x, PackedSequence):
        return int(x.batch_sizes[0])
    if isinstance(x, tuple | list) and not _is_named(x):
        lengths = [len(y) for y in x if isinstance(y, Tensor) and y.ndim]
        ragged = len(lengths) == len(x) and len(set(lengths)) > 1
        if x and (ragged or all(isinstance(y, str | Mapping) for y in x)):
            return len(x)
    return next((y.shape[0] for y in tensors_of_batch(x) if y.ndim), None)


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple | list) and len(x) == 2


def _is_named(x: Any) -> bool:
    return hasattr(x, "_fields")


def _is_object(x: Any) -> bool:
    """Whether an object may be a batch: a dataclass, or an object that moves between devices."""
    if isinstance(x, Tensor | tuple | list | nn.Module | type):
        return False
    return dataclasses.is_dataclass(x) or callable(getattr(x, "to", None))


def _is_single_object(data: Any) -> bool:
    """Whether data other than a pair are one batch.

    Raises
    ------
    ValueError
        An object moves between devices like a batch, and is iterable like a loader.
    """
    if isinstance(data, Mapping):
        return next(tensors_of_batch(data), None) is not None
    if not _is_object(data) or hasattr(data, "dataset"):
        return False
    if isinstance(data, Iterable):
        raise ValueError(
            f"data is a {type(data).__name__}, which has a method .to like a batch and can be "
            "iterated over like a loader; pass batch=True for one batch, or batch=False for many."
        )
    return True


def _can_be_batch(x: Any) -> bool:
    shaped = _is_pair(x) or isinstance(x, Mapping) or _is_object(x)
    return shaped and next(tensors_of_batch(x), None) is not None


def _outline(x: Any) -> Any:
    """What two batches of the same data have in common: types, keys, dimensions, data types."""
    if isinstance(x, Tensor):
        return x.ndim, x.dtype
    if isinstance(x, Mapping):
        return type(x), {key: _outline(item) for key, item in x.items()}
    if isinstance(x, tuple | list):
        return type(x), [_outline(item) for item in x]
    return type(x)
