"""The modules, tensors and settings that a model or a loss reads in addition to what it is given.

A loss may be a module, a method of an object, a closure, or a function that uses global variables.
The ``forward`` of a model may use all of these, too, and modules that it keeps in a list. What they
read is found from the names in their code, so that an object contributes only the attributes that
the code mentions.
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor, nn

from matfree_torch.objective.module_attributes import (
    attributes_of,
    holds_objects,
    own_attributes,
    same_leaves,
)

_MAX_OBJECTS = 1000  # a bound on the search; functions that read more are followed in part
_MAX_VISITED = 100
_LIBRARIES = frozenset({"torch", "numpy", "matfree", "builtins"})
_SETTINGS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_HOOKS = "_forward_hooks", "_forward_pre_hooks"
_LOADS = "LOAD_GLOBAL", "LOAD_NAME"
_STANDARD_LIBRARY = os.path.dirname(os.__file__)

_Part: TypeAlias = tuple[str, Any, frozenset[str]]
"""The name of an object, the object, and the names that the code using it contains."""


@final
class Reachable:
    """What functions and modules read in addition to their arguments, parameters and buffers.

    Parameters
    ----------
    function : callable, or None for nothing
    model : mapping of names to modules, optional
        The registered modules of a model. Their code, hooks and attributes are searched, and they
        are not reported themselves.
    """

    def __init__(self, function: Any, model: Mapping[str, nn.Module] | None = None) -> None:
        own = model or {}
        self._function, self._excluded = function, frozenset(map(id, own.values()))
        self._kinds = list(dict.fromkeys(map(type, own.values())))
        self._held = [part for path, module in own.items() for part in _held_by(path, module)]
        self.modules: dict[str, nn.Module] = {}
        """The outermost modules, by the names under which the code knows them."""
        self.of_model: set[str] = set()
        """The names of those that only the model uses."""
        self.tensors: list[Any] = []
        """Tensors and NumPy arrays."""
        self.settings: list[Any] = []
        """Numbers, strings and the like."""
        self._seen: set[int] = set()
        self._names: dict[type, frozenset[str]] = {}
        self._search()

    def is_current(self) -> bool:
        """Whether a new search finds the same objects and equal settings."""
        now = copy.copy(self)
        now._search()
        return (
            same_leaves(self.settings, now.settings)
            and same_leaves(self.tensors, now.tensors)
            and same_leaves(list(self.modules.values()), list(now.modules.values()))
        )

    def _search(self) -> None:
        self.modules, self.tensors, self.settings, self._seen = {}, [], [], set()
        if self._function is not None:
            self._visit(self._function, "", frozenset())
        of_loss = set(self.modules)
        for kind in self._kinds:
            self._visit_class(kind)
        for held in self._held:
            self._visit_part(held)
        self.of_model = self.modules.keys() - of_loss

    def _visit(self, x: Any, name: str, mentioned: frozenset[str]) -> None:
        """Record an object, and visit what it reads.

        ``mentioned`` holds the names that the code of the function contains.
        """
        if isinstance(x, _SETTINGS):
            self.settings.append(x)
            return
        if id(x) in self._seen or id(x) in self._excluded or len(self._seen) >= _MAX_OBJECTS:
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor | np.ndarray):
            self.tensors.append(x)
        elif isinstance(x, nn.Module):
            unique = name if name not in self.modules else f"{name} ({len(self.modules)})"
            self.modules[unique] = x
            for module in x.modules():
                self._visit_class(type(module))
                for held in _held_by(name, module):
                    self._visit_part(held)
        else:
            for part in _parts(x, name, mentioned):
                self._visit_part(part)

    def _visit_part(self, part: _Part) -> None:
        name, x, names = part
        self._visit(x, name, names)

    def _visit_class(self, kind: type) -> None:
        """Visit what the methods of a class of modules read; the attributes follow the module."""
        if id(kind) not in self._seen:
            self._seen.add(id(kind))
            if kind not in self._names:  # the code of a class does not change in a search
                self._names[kind] = _names_in_class(kind)
            for part in _read_by_class(kind, self._names[kind]):
                self._visit_part(part)


def _held_by(path: str, module: nn.Module) -> Iterator[_Part]:
    """The hooks of a module and its attributes other than numbers and tensors."""
    for registry in _HOOKS:
        for hook in getattr(module, registry).values():
            yield path, hook, frozenset()
    for name, x in own_attributes(module).items():
        shared = isinstance(x, nn.Module | types.FunctionType | types.MethodType)
        if shared or (holds_objects(x) and not isinstance(x, np.ndarray)):
            yield f"{path}.{name}".strip("."), x, _names_in_class(type(module))


def _parts(x: Any, name: str, mentioned: frozenset[str]) -> Iterator[_Part]:
    """The objects that an object refers to, with their names, and the names that its code has."""
    if isinstance(x, functools.partial):
        yield from ((name, item, mentioned) for item in (x.func, *x.args))
        yield from ((key, item, mentioned) for key, item in x.keywords.items())
    elif isinstance(x, types.MethodType):
        names = _names_in(x.__func__)
        yield from ((name, x.__func__, names), (name, x.__self__, names))
    elif isinstance(x, types.FunctionType):
        if not _is_library(x):
            yield from _variables_of(x, name)
    elif isinstance(x, Mapping):
        yield from ((_item(name, key), x[key], mentioned) for key in islice(x, _MAX_VISITED))
    elif isinstance(x, list | tuple | set | frozenset):
        items = enumerate(islice(x, _MAX_VISITED))
        yield from ((_item(name, i), item, mentioned) for i, item in items)
    elif isinstance(x, types.ModuleType):
        if not _is_library_name(x.__name__):
            found = mentioned & set(vars(x))
            yield from ((key, vars(x)[key], mentioned) for key in sorted(found))
    elif not isinstance(x, type) and not _is_library(type(x)):
        names = mentioned | _names_in(vars(type(x)).get("__call__"))
        attributes = attributes_of(x)
        yield from ((key, attributes[key], names) for key in sorted(names & set(attributes)))
        for key in sorted(names | {"__call__"}):
            method = getattr(type(x), key, None)
            if isinstance(method, types.FunctionType):
                yield key, types.MethodType(method, x), names | _names_in(method)


def _item(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _variables_of(function: types.FunctionType, own_name: str) -> Iterator[_Part]:
    """The variables of the enclosing scopes, the default arguments and the global variables."""
    names = _names_in(function)
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents, names
        except ValueError:  # not assigned yet
            continue
    for item in function.__defaults__ or ():
        yield own_name, item, names
    for name, item in (function.__kwdefaults__ or {}).items():
        yield name, item, names
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield name, function.__globals__[name], names


def _read_by_class(kind: type, names: frozenset[str]) -> Iterator[_Part]:
    """The variables of ``forward`` and of all methods that it uses, and attributes of the class."""
    for base in kind.__mro__:
        if base is object or _is_library(base):
            continue
        for name in sorted(names & set(vars(base))):
            function = _function_in(vars(base)[name])
            if function is None:
                yield name, vars(base)[name], names
            elif not _is_library(function):
                yield from _variables_of(function, name)


def _names_in_class(kind: type) -> frozenset[str]:
    """The names in the code of ``forward``, and of the methods that it uses."""
    found, pending = set[str](), ["forward", "__call__"]
    bases = [vars(base) for base in kind.__mro__ if base is not object and not _is_library(base)]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            for attributes in bases:
                pending.extend(_names_in(_function_in(attributes.get(name))))
    return frozenset(found)


def _function_in(x: Any) -> types.FunctionType | None:
    """The function behind a method, a property or a decorated function; None for anything else."""
    x = getattr(x, "fget", None) or getattr(x, "__func__", x)
    if not isinstance(x, types.FunctionType):
        return None
    inner = inspect.unwrap(x)
    return inner if isinstance(inner, types.FunctionType) else x


def _names_in(function: Any) -> frozenset[str]:
    """The names that the code of a function contains, including functions defined inside it."""
    code = getattr(function, "__code__", None)
    return _names_of_code(code) if isinstance(code, types.CodeType) else frozenset()


@functools.lru_cache(maxsize=1024)
def _names_of_code(code: types.CodeType) -> frozenset[str]:
    inner = (_names_of_code(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The names of the global variables that code reads; attributes may have the same names."""
    loads = (i.argval for i in dis.get_instructions(code) if i.opname in _LOADS)
    inner = (_global_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return tuple(sorted(set(loads).union(*inner)))


def _is_library(x: Any) -> bool:
    return _is_library_name(getattr(x, "__module__", None) or "")


@functools.lru_cache(maxsize=1024)
def _is_library_name(name: str) -> bool:
    """Whether a Python module belongs to torch, NumPy, matfree or the standard library."""
    top = name.partition(".")[0]
    if top in _LIBRARIES or top in sys.builtin_module_names:
        return True
    file = str(getattr(sys.modules.get(name), "__file__", ""))
    return file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
