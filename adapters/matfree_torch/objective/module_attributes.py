"""Protection of what modules keep between two calls, such as buffers and hidden states.

During an evaluation every module works on copies of its buffers and of its mutable attributes:
tensors, arrays, random generators, containers, and objects that hold any of these. Afterwards the
originals are put back, attributes that appeared are removed, and numbers, strings and None have
their earlier values again.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import random
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

_MACHINERY = frozenset(vars(nn.Module())) - {"training"}
"""The attributes in which torch keeps parameters, buffers, submodules and hooks."""
_IMMUTABLE = frozenset(
    {bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size}
)
_SHARED = type, types.ModuleType, types.FunctionType, types.MethodType, enum.Enum, nn.Module
_GENERATORS = random.Random, np.random.Generator, np.random.RandomState
_MAX_COPIES = 10_000  # objects with more parts are shared in part
_MAX_LEAVES = 50_000
_MAX_ITEMS = 4_000  # of longer containers, evenly spaced items are compared
_MAX_NUMBERS = 100_000  # the same for containers of numbers and strings


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, without those in which torch keeps parameters and hooks."""
    return {name: x for name, x in vars(module).items() if name not in _MACHINERY}


def attributes_of(x: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots included."""
    names = (n for base in type(x).__mro__ for n in _slots_of(base) if hasattr(x, n))
    return {**getattr(x, "__dict__", {}), **{name: getattr(x, name) for name in names}}


def _slots_of(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def leaves_of(objects: Iterable[Any]) -> list[Any]:
    """The tensors, numbers and other leaves of nested containers, and of objects' attributes.

    Long containers are sampled, so that the cost is bounded.
    """
    found: list[Any] = []
    seen: set[int] = set()
    pending = list(objects)[::-1]
    while pending and len(seen) < _MAX_COPIES and len(found) < _MAX_LEAVES:
        x = pending.pop()
        if not holds_objects(x):
            found.append(x)
        elif id(x) not in seen:
            seen.add(id(x))
            parts = _parts_of(x)
            pending.extend(parts[::-1])
            if not parts:
                found.append(x)
    return found


def holds_objects(x: Any) -> bool:
    """Whether an attribute may hold objects that change, other than a tensor."""
    return _may_change(x) and not isinstance(x, (*_SHARED, Tensor))


def _may_change(x: Any) -> bool:
    """Whether an attribute is neither a number or string nor a tuple of them."""
    if type(x) is tuple:
        return not _IMMUTABLE.issuperset(map(type, x))
    return type(x) not in _IMMUTABLE


def same_leaves(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether two lists hold the same objects, and numbers and strings of the same values."""
    return len(before) == len(now) and all(
        a is b or (type(a) is type(b) and not _may_change(a) and a == b)
        for a, b in zip(before, now, strict=True)
    )


def _parts_of(x: Any) -> list[Any]:
    if isinstance(x, Mapping | list | tuple | set | frozenset | deque):
        items = [*x, *x.values()] if isinstance(x, Mapping) else x
        evenly = _evenly(items, _MAX_NUMBERS)
        if _IMMUTABLE.issuperset(map(type, evenly)):
            return [tuple(evenly)]  # compared at once
        return _evenly(items, _MAX_ITEMS)
    return [] if _is_opaque(x) else list(attributes_of(x).values())


def _evenly(items: Collection[Any], limit: int) -> list[Any]:
    """The items, or at most about ``limit`` evenly spaced ones and the number of all."""
    listed = items if isinstance(items, list) else list(items)
    count = len(listed)
    if count <= limit:
        return listed
    return [count, listed[-1], *listed[:: -(-count // limit)]]


def _is_opaque(x: Any) -> bool:
    """Whether an object belongs to a library, or has no attributes."""
    library = f"{type(x).__module__}.".startswith(("torch.", "numpy.", "threading."))
    return library or not (hasattr(x, "__dict__") or any(map(_slots_of, type(x).__mro__)))


def numeric_tensors(objects: Iterable[Any]) -> list[Tensor]:
    """The tensors among some objects, and the NumPy arrays as tensors on the same memory."""
    return [
        x if isinstance(x, Tensor) else torch.as_tensor(x)
        for x in objects
        if isinstance(x, Tensor)
        or (isinstance(x, np.ndarray) and x.dtype.kind in "fiuc" and x.flags.writeable)
    ]


@contextlib.contextmanager
def protected(modules: Sequence[nn.Module]) -> Iterator[Callable[[nn.Module], None]]:
    """A context in which modules work on copies of their buffers and mutable attributes.

    It provides a function that includes another module.
    """
    saved = [_SavedModule(module) for module in modules]
    copies = _Copies()

    def include(module: nn.Module) -> None:
        saved.append(_SavedModule(module))
        saved[-1].replace_by_copies(copies)

    try:
        for module in saved:
            module.replace_by_copies(copies)
        yield include
    finally:
        for module in saved:
            module.restore()


@final
class _SavedModule:
    """The attributes and buffers of a module, and the names of its parameters and submodules."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._attributes = own_attributes(module)
        self._registered = [
            (registry, dict(registry.items())) for registry in (module._parameters, module._modules)
        ]
        self._buffers = dict(module._buffers.items())
        self._mutable = [(name, x) for name, x in self._attributes.items() if _may_change(x)]

    def replace_by_copies(self, copies: _Copies) -> None:
        module = self._module
        for name, buffer in self._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.clone()
        for name, x in self._mutable:
            module.__dict__[name] = copies.of(x)

    def restore(self) -> None:
        attributes, buffers = self._module.__dict__, self._module._buffers
        for name in attributes.keys() - self._attributes.keys() - _MACHINERY:
            del attributes[name]
        attributes.update(self._attributes)
        for name, buffer in self._buffers.items():  # those of a scripted module have no update()
            buffers[name] = buffer
        for name in set(buffers.keys()) - self._buffers.keys():
            del buffers[name]
        for registry, before in self._registered:  # a first call may register more
            for name in set(registry.keys()) - before.keys():
                del registry[name]


@final
class _Copies:
    """Copies of mutable objects. Objects that several modules share have one copy."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}

    def of(self, x: Any) -> Any:
        """The copy of an object; the object itself if it cannot change or cannot be copied."""
        if type(x) in _IMMUTABLE or isinstance(x, _SHARED):
            return x
        if id(x) not in self._copies:
            if len(self._copies) >= _MAX_COPIES:
                return x
            self._copies[id(x)] = x  # for objects that refer to themselves
            self._copies[id(x)] = self._copied(x)
        return self._copies[id(x)]

    def _copied(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            # A parameter that is also an attribute has to remain the same tensor.
            return x if x.is_leaf and x.requires_grad else x.clone()
        if isinstance(x, torch.Generator):
            return torch.Generator(x.device).set_state(x.get_state())
        if isinstance(x, _GENERATORS):
            return copy.deepcopy(x)
        if isinstance(x, np.ndarray | set):
            return x.copy()
        if isinstance(x, tuple):
            items = [self.of(item) for item in x]
            same = all(a is b for a, b in zip(x, items, strict=True))
            return x if same else (type(x)(*items) if hasattr(x, "_fields") else type(x)(items))
        return self._shallow_copy_with_parts(x)

    def _shallow_copy_with_parts(self, x: Any) -> Any:
        container = isinstance(x, dict | list | deque)
        if not container and _is_opaque(x):
            return x
        try:
            y = copy.copy(x)
        except Exception:  # of any kind: the class decides what its copy does
            return x
        if y is x:
            return x
        self._copies[id(x)] = y
        if container and len(y) <= _MAX_ITEMS:  # the items of longer ones are shared
            for key in list(y) if isinstance(y, dict) else range(len(y)):
                y[key] = self.of(y[key])
        for name, item in attributes_of(y).items():
            own = self.of(item)
            if own is not item:  # the class may be frozen
                object.__setattr__(y, name, own)
        return y
