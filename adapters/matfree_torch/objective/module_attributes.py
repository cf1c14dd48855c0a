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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, without those in which torch keeps parameters and hooks."""
    return {name: x for name, x in vars(module).items() if name not in _MACHINERY}


def leaves_of(objects: Iterable[Any]) -> list[Any]:
    """The tensors, numbers and other leaves of nested containers, and of objects' attributes."""
    found: list[Any] = []
    seen: set[int] = set()
    pending = list(objects)[::-1]
    while pending and len(seen) < _MAX_COPIES:
        x = pending.pop()
        if not holds_objects(x):
            found.append(x)
        elif id(x) not in seen:
            seen.add(id(x))
            parts = _parts_of(x)
            pending.extend(parts[::-1])
            if not parts:
                found.append(_as_tensor(x))
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
        a is b or (type(a) is type(b) and type(a) in _IMMUTABLE and a == b)
        for a, b in zip(before, now, strict=True)
    )


def _parts_of(x: Any) -> list[Any]:
    if isinstance(x, Mapping):
        return [*x, *x.values()]
    if isinstance(x, list | tuple | set | frozenset | deque):
        return list(x)
    return [] if _is_opaque(x) else list(vars(x).values())


def _is_opaque(x: Any) -> bool:
    """Whether an object belongs to a library, or has no dictionary of attributes."""
    library = f"{type(x).__module__}.".startswith(("torch.", "numpy.", "threading."))
    return library or not hasattr(x, "__dict__")


def _as_tensor(x: Any) -> Any:
    """A NumPy array as a tensor on the same memory; other objects as they are."""
    numeric = isinstance(x, np.ndarray) and x.dtype.kind in "fiu" and x.flags.writeable
    return torch.as_tensor(x) if numeric else x


@contextlib.contextmanager
def protected(modules: Sequence[nn.Module]) -> Iterator[None]:
    """A context in which modules work on copies of their buffers and mutable attributes."""
    saved = [_SavedModule(module) for module in modules]
    copies = _Copies()
    try:
        for module in saved:
            module.replace_by_copies(copies)
        yield
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
        if container:
            for key in list(y) if isinstance(y, dict) else range(len(y)):
                y[key] = self.of(y[key])
        for name, item in getattr(y, "__dict__", {}).items():
            y.__dict__[name] = self.of(item)
        return y
