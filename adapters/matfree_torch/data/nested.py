"""Tensors in nested tuples, lists, mappings and dataclasses, as models take and return them.

``torch.utils._pytree`` treats mappings that are not dicts, such as the ``BatchEncoding`` of Hugging
Face's tokenizers, as leaves and would miss their tensors.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def tensors_in(x: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, depth first."""
    if isinstance(x, Tensor):
        yield x
    else:
        for item in _items(x).values():
            yield from tensors_in(item)


def tensors_of_batch(x: Any) -> Iterator[Tensor]:
    """The same, and the tensors that are attributes of other objects, such as graphs."""
    return _with_attributes(x, set())


def floating_tensors_in(x: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists, mappings and dataclasses."""
    return (tensor for tensor in tensors_in(x) if tensor.is_floating_point())


def map_tensors(function: Callable[[Tensor], Any], x: Any) -> Any:
    """The same nested structure with every tensor replaced by ``function(tensor)``.

    Containers keep their types. A container in which no tensor changes is returned unchanged, and
    so is any other object.
    """
    if isinstance(x, Tensor):
        return function(x)
    return _map_items(lambda item: map_tensors(function, item), x)


def _map_items(function: Callable[[Any], Any], x: Any) -> Any:
    """A container with ``function`` of its items; the same object if no item changes."""
    before = _items(x)
    after = {key: function(item) for key, item in before.items()}
    if all(after[key] is item for key, item in before.items()):
        return x
    if isinstance(x, Mapping):
        return _mapping_like(x, after)
    if isinstance(x, tuple | list):
        is_namedtuple = hasattr(x, "_fields")  # takes its items as separate arguments
        return type(x)(*after.values()) if is_namedtuple else type(x)(after.values())
    changed = copy.copy(x)
    for name, item in after.items():
        object.__setattr__(changed, name, item)  # a dataclass may be frozen
    return changed


def moved_to_device(x: Any, device: torch.device) -> Any:
    """A nested structure on a device, with all types kept; objects are copied and moved."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, PackedSequence):  # a tuple of tensors, of which one stays on the CPU
        return x.to(device=device)  # type: ignore[call-arg]  # its annotations lack devices
    if not _items(x) and callable(getattr(x, "to", None)):
        return copy.copy(x).to(device)  # some move themselves in place
    return _map_items(lambda item: moved_to_device(item, device), x)


def _items(x: Any) -> dict[Any, Any]:
    """The items of a container by key, index or field; none for anything else."""
    if isinstance(x, Mapping):
        return dict(x.items())
    if isinstance(x, tuple | list):
        return dict(enumerate(x))
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: getattr(x, f.name) for f in dataclasses.fields(x) if hasattr(x, f.name)}
    return {}


def _mapping_like(x: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the type of ``x``, with its attributes and other items."""
    if isinstance(x, MutableMapping):
        changed = copy.copy(x)
        for key, item in items.items():
            changed[key] = item
        return changed
    try:
        return type(x)(items)  # type: ignore[call-arg]  # such as types.MappingProxyType
    except TypeError:
        return items


def _with_attributes(x: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
        return
    items = _items(x)
    if not items and not callable(x) and not isinstance(x, type | nn.Module):
        items = dict(getattr(x, "__dict__", {}))
    if items and id(x) not in seen:  # objects may refer to each other
        seen.add(id(x))
        for item in items.values():
            yield from _with_attributes(item, seen)
