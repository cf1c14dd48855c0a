"""Tensors in nested tuples, lists and mappings, as models take and return them.

``torch.utils._pytree`` treats mappings other than plain dictionaries as leaves, such as the batches
of Hugging Face's tokenizers, so that it would miss their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(x: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and mappings, in their order."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list | Mapping):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from tensors_in(item)


def floating_tensors_in(x: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and mappings."""
    return (tensor for tensor in tensors_in(x) if tensor.is_floating_point())


def map_tensors(function: Callable[[Tensor], Any], x: Any) -> Any:
    """Nested tuples, lists and mappings with every tensor replaced by ``function`` of it.

    Mappings of any type become dictionaries. Anything else is returned as it is.
    """
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, Mapping):
        return {name: map_tensors(function, item) for name, item in x.items()}
    if isinstance(x, tuple | list):
        items = [map_tensors(function, item) for item in x]
        named = hasattr(x, "_fields")  # a namedtuple takes its items as separate arguments
        return type(x)(*items) if named else type(x)(items)
    return x
