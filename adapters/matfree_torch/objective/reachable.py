"""The modules, tensors and settings that a loss reads in addition to its arguments.

A loss may be a module, a method of an object, a closure, or a function that uses global variables.
What it reads is found from the names in its code, so that an object contributes only the attributes
that the function mentions.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from matfree_torch.objective.module_attributes import same_leaves

_MAX_OBJECTS = 1000  # a bound on the search; functions that read more are followed in part
_MAX_ITEMS = 100
_LIBRARIES = ("torch.", "numpy.", "matfree.", "builtins")
_SETTINGS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@final
class Reachable:
    """What a function reads in addition to its arguments.

    Parameters
    ----------
    function : callable, or None for nothing
    excluded : collection of modules that belong to the model
    """

    def __init__(self, function: Any, excluded: frozenset[int] = frozenset()) -> None:
        self.modules: dict[str, nn.Module] = {}
        """The outermost modules, by the names under which the function knows them."""
        self.tensors: list[Tensor] = []
        self.settings: list[Any] = []
        """Numbers, strings and the like."""
        self._excluded, self._seen = excluded, set[int]()
        if function is not None:
            self._visit(function, "", frozenset())

    def is_same(self, other: Reachable) -> bool:
        """Whether two searches have found the same objects and equal settings."""
        return (
            same_leaves(self.settings, other.settings)
            and same_leaves(self.tensors, other.tensors)
            and same_leaves(list(self.modules.values()), list(other.modules.values()))
        )

    def _visit(self, x: Any, name: str, mentioned: frozenset[str]) -> None:
        """Record an object, and visit what it reads.

        ``mentioned`` holds the names that the code of the function contains.
        """
        if isinstance(x, _SETTINGS):
            self.settings.append(x)
            return
        if id(x) in self._seen or len(self._seen) >= _MAX_OBJECTS:
            return
        self._seen.add(id(x))
        if isinstance(x, Tensor):
            self.tensors.append(x)
        elif isinstance(x, np.ndarray):
            if x.dtype.kind in "fiu" and x.flags.writeable:
                self.tensors.append(torch.as_tensor(x))
        elif isinstance(x, nn.Module):
            if id(x) not in self._excluded:
                self.modules[name] = x
                self._visit_function(type(x).forward, x)
        else:
            for part, item, names in _parts(x, mentioned):
                self._visit(item, part or name, names)

    def _visit_function(self, function: Any, owner: Any) -> None:
        """Visit what a method reads; the attributes of a module are followed with the module."""
        if isinstance(function, types.FunctionType) and not _is_library(function):
            self._seen.add(id(owner))
            for part, item, names in _parts(function, frozenset()):
                self._visit(item, part, names)


def _parts(x: Any, mentioned: frozenset[str]) -> Iterator[tuple[str, Any, frozenset[str]]]:
    """The objects that an object refers to, with their names, and the names that its code has."""
    if isinstance(x, functools.partial):
        yield from (("", item, mentioned) for item in (x.func, *x.args))
        yield from ((name, item, mentioned) for name, item in x.keywords.items())
    elif isinstance(x, types.MethodType):
        names = _names_in(x.__func__)
        yield from (("", x.__func__, names), ("", x.__self__, names))
    elif isinstance(x, types.FunctionType):
        if not _is_library(x):
            yield from _variables_of(x)
    elif isinstance(x, Mapping):
        yield from ((str(key), x[key], mentioned) for key in list(x)[:_MAX_ITEMS])
    elif isinstance(x, list | tuple | set | frozenset):
        yield from (("", item, mentioned) for item in list(x)[:_MAX_ITEMS])
    elif not isinstance(x, type | types.ModuleType) and not _is_library(type(x)):
        names = mentioned | _names_in(vars(type(x)).get("__call__"))
        attributes = getattr(x, "__dict__", {})
        yield from ((name, attributes[name], names) for name in names & set(attributes))
        for name in (*names, "__call__"):
            method = getattr(type(x), name, None)
            if isinstance(method, types.FunctionType):
                yield name, types.MethodType(method, x), names | _names_in(method)


def _variables_of(function: types.FunctionType) -> Iterator[tuple[str, Any, frozenset[str]]]:
    """The variables of the enclosing scopes, the default arguments and the global variables."""
    names = _names_in(function)
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents, names
        except ValueError:  # not assigned yet
            continue
    for item in function.__defaults__ or ():
        yield "", item, names
    for name, item in (function.__kwdefaults__ or {}).items():
        yield name, item, names
    for name in sorted(names & set(function.__globals__)):
        item = function.__globals__[name]
        if not isinstance(item, types.ModuleType):
            yield name, item, names


def _names_in(function: Any) -> frozenset[str]:
    """The names that the code of a function contains, including functions defined inside it."""
    code = getattr(function, "__code__", None)
    return _names_of_code(code) if isinstance(code, types.CodeType) else frozenset()


@functools.lru_cache(maxsize=256)
def _names_of_code(code: types.CodeType) -> frozenset[str]:
    inner = (_names_of_code(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _is_library(x: Any) -> bool:
    return f"{getattr(x, '__module__', '')}.".startswith(_LIBRARIES)
