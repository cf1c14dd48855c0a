"""Places inside a network where a zero is added, and the loss differentiated by it.

A port belongs to one call of one module: its input as this module alone sees it, its output,
or the tensor it reads, with everything else that reads it too. The first two are hooks. For
the third the zero is added where the tensor is made: by the n-th operation of the forward
pass, which a dry run finds.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from matfree import OperatorError
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Patterns, matching

Where: TypeAlias = Literal["input", "output", "tensor"]
Selection: TypeAlias = (
    type[nn.Module] | tuple[type[nn.Module], ...] | Patterns | Callable[[str, nn.Module], bool]
)
"""Modules by type, by names or patterns of names, or by a function (name, module) -> bool."""

_Place: TypeAlias = tuple[int, int]  # the operation, -1 for the model's arguments; which result


@final
@dataclass(frozen=True)
class Port:
    """One call of one module."""

    name: str
    """The module's name; with ``#0``, ``#1`` ... where it is called more than once."""
    module: nn.Module
    call: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    producer: _Place | None
    """For the tensor with all its readers: where it is made."""

    def zeros(self) -> Tensor:
        """The perturbation: a zero to differentiate by."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device, requires_grad=True)


def choose(model: nn.Module, modules: Selection) -> dict[str, nn.Module]:
    """The chosen modules by name; ValueError where there are none."""
    everything: dict[str, nn.Module] = dict(model.named_modules())
    kinds: Any = modules  # isinstance takes types and tuples of them
    if _are_types(modules):
        chosen = {name: m for name, m in everything.items() if isinstance(m, kinds)}
    elif callable(modules):
        chosen = {name: m for name, m in everything.items() if modules(name, m)}
    else:
        inside = {name: m for name, m in everything.items() if name}
        chosen = matching(inside, kinds, "module")
    if not chosen:
        held = sorted({type(m).__name__ for m in everything.values()})
        raise ValueError(
            f"modules={modules!r} chooses none of the model's modules; it holds {', '.join(held)}."
        )
    return chosen


def find(
    objective: Objective, batch: Batch, modules: Mapping[str, nn.Module], at: Where
) -> tuple[list[Port], Tensor]:
    """Run the model once, and note every call of these modules; the loss beside them."""
    names = {module: name or type(module).__name__ for name, module in modules.items()}
    seen: list[tuple[nn.Module, int, Tensor, _Place | None]] = []
    counts = dict.fromkeys(names, 0)
    operations = _Operations()

    def note(module: nn.Module, x: Tensor) -> Tensor:
        place = operations.places.get(id(x)) if at == "tensor" else None
        seen.append((module, counts[module], x.detach(), place))
        counts[module] += 1
        return x

    for place, x in enumerate(_floating(batch.inputs)):
        operations.remember(x, (-1, place))
    with _hooked(names, at, note, operations):
        outputs = objective.outputs(batch)
    ports = [
        Port(
            names[module] + f"#{call}" * (counts[module] > 1),
            module,
            call,
            x.shape,
            x.dtype,
            x.device,
            place,
        )
        for module, call, x, place in seen
    ]
    if not ports:
        raise ValueError(f"none of the modules {list(names.values())} is called for this batch.")
    lost = [port.name for port in ports if at == "tensor" and port.producer is None]
    if lost:
        raise OperatorError(
            f"nothing tells where the input of {lost[0]!r} is made (a constant, or inside an "
            "opaque function); take at='input'."
        )
    return ports, objective.value(outputs, batch.targets).detach()


def perturbed(
    objective: Objective, batch: Batch, ports: Sequence[Port], deltas: Sequence[Tensor], at: Where
) -> Any:
    """The model's outputs with the deltas added at the ports."""
    by_call = {(p.module, p.call): (p, d) for p, d in zip(ports, deltas, strict=True)}
    counts = dict.fromkeys((port.module for port in ports), 0)
    operations = _Operations(
        [(port.producer, d) for port, d in zip(ports, deltas, strict=True) if port.producer]
    )

    def add(module: nn.Module, x: Tensor) -> Tensor:
        call = counts[module]
        counts[module] += 1
        if (module, call) not in by_call or by_call[module, call][0].shape != x.shape:
            raise OperatorError(f"{type(module).__name__} is called otherwise than in the dry run.")
        port, delta = by_call[module, call]
        if at != "tensor":
            return x + delta
        if id(x) not in operations.added:
            raise OperatorError(
                f"the input of {port.name!r} is changed in place by a call whose result is not "
                "used, so that nothing can be added to it; take at='input', or inplace=False."
            )
        return x

    numbers = itertools.count()
    inputs = _mapped(batch.inputs, lambda x: operations.changed(x, (-1, next(numbers))))
    with _hooked(counts, at, add, operations):
        return objective.outputs(batch._replace(inputs=inputs))


@final
class _Operations(TorchFunctionMode):
    """Numbers the operations of a forward pass, and adds to the results of some of them."""

    def __init__(self, additions: Sequence[tuple[_Place, Tensor]] = ()) -> None:
        super().__init__()
        self.places: dict[int, _Place] = {}
        self.added: dict[int, Tensor] = {}
        self.counting = True
        self._additions, self._alive, self._count = additions, list[Tensor](), 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.counting:
            return result
        number, self._count = self._count, self._count + 1
        if isinstance(result, Tensor):
            return self.changed(result, (number, 0))
        if isinstance(result, tuple | list) and any(isinstance(x, Tensor) for x in result):
            parts = [
                self.changed(x, (number, j)) if isinstance(x, Tensor) else x
                for j, x in enumerate(result)
            ]
            plain = not hasattr(result, "_fields") and type(result) in (tuple, list)
            return type(result)(parts) if plain else type(result)(tuple(parts))
        return result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Not to count what a hook does."""
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def changed(self, x: Tensor, place: _Place) -> Tensor:
        """The result of an operation, plus what belongs there."""
        deltas = [delta for where, delta in self._additions if where == place]
        for delta in deltas:
            x = x + delta
        if deltas:
            self.added[id(x)] = x
        elif not self._additions:
            self.remember(x, place)
        return x

    def remember(self, x: Tensor, place: _Place) -> None:
        """Where a tensor was made; it is kept alive, so that no other gets its identity."""
        self.places[id(x)] = place
        self._alive.append(x)


@contextlib.contextmanager
def _hooked(
    modules: Mapping[nn.Module, Any],
    at: Where,
    visit: Callable[[nn.Module, Tensor], Tensor],
    operations: _Operations,
) -> Iterator[None]:
    """Show the port of every call to a visitor, and go on with what it returns."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        with operations.paused():
            found, args = _with_first(args, lambda x: visit(module, x))
            if not found:
                found, kwargs = _with_first(kwargs, lambda x: visit(module, x))
            _require_found(found, module, "input", "output")
        return args, kwargs

    def after(module: nn.Module, args: Any, outputs: Any) -> Any:
        found, outputs = _with_first(outputs, lambda x: visit(module, x))
        _require_found(found, module, "output", "input")
        return outputs

    with contextlib.ExitStack() as stack:
        for module in modules:
            if at == "output":
                handle = module.register_forward_hook(after)
            else:
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        if at == "tensor":
            stack.enter_context(operations)
        yield


def _require_found(found: bool, module: nn.Module, where: str, other: str) -> None:
    if not found:
        raise OperatorError(
            f"{type(module).__name__} has no floating point tensor as {where} to differentiate "
            f"by; take at={other!r}, or leave it out."
        )


def _with_first(x: Any, change: Callable[[Tensor], Tensor]) -> tuple[bool, Any]:
    """Something with its first floating point tensor changed, and whether there is one."""
    if isinstance(x, Tensor):
        return (True, change(x)) if x.is_floating_point() else (False, x)
    keys = list(x) if isinstance(x, Mapping) else list(range(len(x))) if _plain(x) else []
    for key in keys:
        if isinstance(x[key], Tensor) and x[key].is_floating_point():
            if isinstance(x, Mapping):
                changed: Any = copy.copy(x)
                changed[key] = change(x[key])
                return True, changed
            return True, (*x[:key], change(x[key]), *x[key + 1 :])
    return False, x


def _plain(x: Any) -> bool:
    return isinstance(x, tuple | list)


def _floating(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor) and x.is_floating_point():
        yield x
    elif isinstance(x, tuple | Mapping):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from _floating(item)


def _mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return function(x) if x.is_floating_point() else x
    if isinstance(x, tuple):
        return tuple(_mapped(item, function) for item in x)
    if isinstance(x, Mapping):
        return {name: _mapped(item, function) for name, item in x.items()}
    return x


def _are_types(modules: Any) -> bool:
    return all(isinstance(m, type) for m in (modules if isinstance(modules, tuple) else (modules,)))
