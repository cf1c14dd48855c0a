"""Ports: the places in a network at which activations are perturbed.

A port belongs to one call of one module. A zero is added at the port, and the loss is
differentiated with respect to this zero, a perturbation. There are three kinds of ports:

* "input": the input of the module, as seen only by this module;
* "output": the output of the module;
* "tensor": the tensor that the module reads, as seen by all of its readers.

The first two are implemented by hooks. For the third, the zero is added where the tensor is
produced. The operations of a forward pass are counted: a dry run finds the index of the operation
that produces the tensor, and later passes add the zero to the result of the operation with the
same index.
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
from torch.utils import _pytree as pytree

from matfree import OperatorError
from matfree_torch.data.nested import floating_tensors_in, map_tensors
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Patterns, match_names

Where: TypeAlias = Literal["input", "output", "tensor"]
Selection: TypeAlias = (
    type[nn.Module] | tuple[type[nn.Module], ...] | Patterns | Callable[[str, nn.Module], bool]
)
"""Modules by type, by names or patterns of names, or by a function (name, module) -> bool."""

_Producer: TypeAlias = tuple[int, int]
"""(index of an operation, index of its result); operation -1 stands for the model's inputs."""


@final
@dataclass(frozen=True)
class Port:
    """A port of one call of one module."""

    name: str
    """The name of the module, followed by ``#0``, ``#1`` ... if it is called more than once."""
    module: nn.Module
    call: int
    """The index of the call among those of the module."""
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    producer: _Producer | None
    """Where the tensor is produced, for ports of the kind "tensor"."""

    def zeros(self) -> Tensor:
        """A zero perturbation that requires a gradient."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device, requires_grad=True)


def choose_modules(model: nn.Module, modules: Selection) -> dict[str, nn.Module]:
    """The selected modules by name. ValueError if there are none."""
    everything: dict[str, nn.Module] = dict(model.named_modules())
    kinds: Any = modules  # isinstance takes types and tuples of them
    if _are_types(modules):
        chosen = {name: m for name, m in everything.items() if isinstance(m, kinds)}
    elif callable(modules):
        chosen = {name: m for name, m in everything.items() if modules(name, m)}
    else:
        inside = {name: m for name, m in everything.items() if name}
        chosen = match_names(inside, kinds, "module")
    if not chosen:
        types = sorted({type(m).__name__ for m in everything.values()})
        raise ValueError(
            f"modules={modules!r} selects none of the model's modules, which have the types "
            f"{', '.join(types)}; pass one of these types, or names or patterns of names."
        )
    return chosen


def find_ports(
    objective: Objective, batch: Batch, modules: Mapping[str, nn.Module], at: Where
) -> tuple[list[Port], Tensor]:
    """Run the model once and return the ports of these modules' calls, and the loss."""
    names = {module: name or type(module).__name__ for name, module in modules.items()}
    seen: list[tuple[nn.Module, int, Tensor, _Producer | None]] = []
    counts = dict.fromkeys(names, 0)
    operations = _OperationCounter()

    def record(module: nn.Module, x: Tensor) -> Tensor:
        producer = operations.producers.get(id(x)) if at == "tensor" else None
        seen.append((module, counts[module], x.detach(), producer))
        counts[module] += 1
        return x

    for index, x in enumerate(floating_tensors_in(batch.inputs)):
        operations.remember(x, (-1, index))
    with visited_ports(names, at, record, operations):
        outputs = objective.outputs(batch)
    ports = [
        Port(
            names[module] + f"#{call}" * (counts[module] > 1),
            module,
            call,
            x.shape,
            x.dtype,
            x.device,
            producer,
        )
        for module, call, x, producer in seen
    ]
    if not ports:
        raise ValueError(f"none of the modules {list(names.values())} is called for this batch.")
    lost = [port.name for port in ports if at == "tensor" and port.producer is None]
    if lost:
        raise OperatorError(
            f"the operation that produces the input of {lost[0]!r} was not found, because the "
            "input is a constant or comes from an opaque function; pass at='input'."
        )
    return ports, objective.value(outputs, batch.targets).detach()


def perturbed_outputs(
    objective: Objective, batch: Batch, ports: Sequence[Port], deltas: Sequence[Tensor], at: Where
) -> Any:
    """The outputs of the model with the deltas added at the ports."""
    by_call = {(p.module, p.call): (p, d) for p, d in zip(ports, deltas, strict=True)}
    counts = dict.fromkeys((port.module for port in ports), 0)
    operations = _OperationCounter(
        [(port.producer, d) for port, d in zip(ports, deltas, strict=True) if port.producer]
    )

    def add(module: nn.Module, x: Tensor) -> Tensor:
        call = counts[module]
        counts[module] += 1
        if (module, call) not in by_call or by_call[module, call][0].shape != x.shape:
            raise OperatorError(
                f"call {call} of a {type(module).__name__}, on a tensor of shape "
                f"{tuple(x.shape)}, did not occur when the ports were found; the model must make "
                "the same calls in every forward pass."
            )
        port, delta = by_call[module, call]
        if at != "tensor":
            return x + delta
        # The sum with delta is a new tensor. If its producer works in place and its result is
        # dropped, the module reads the old tensor, to which nothing was added.
        if id(x) not in operations.added:
            raise OperatorError(
                f"the input of {port.name!r} is changed in place by a call whose result is not "
                "used, so that nothing can be added to it; pass at='input', or set inplace=False."
            )
        return x

    indices = itertools.count()
    inputs = map_tensors(
        lambda x: operations.visit(x, (-1, next(indices))) if _is_floating(x) else x, batch.inputs
    )
    with visited_ports(counts, at, add, operations):
        return objective.outputs(batch._replace(inputs=inputs))


@final
class _OperationCounter(TorchFunctionMode):
    """Counts the torch operations of a forward pass and adds deltas to some of their results.

    Without ``additions`` it records which operation produces each tensor.
    """

    def __init__(self, additions: Sequence[tuple[_Producer, Tensor]] = ()) -> None:
        super().__init__()
        self.producers: dict[int, _Producer] = {}
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
        index, self._count = self._count, self._count + 1
        leaves, structure = pytree.tree_flatten(result)
        if not any(isinstance(x, Tensor) for x in leaves):
            return result
        visited = [
            self.visit(x, (index, j)) if isinstance(x, Tensor) else x for j, x in enumerate(leaves)
        ]
        return pytree.tree_unflatten(visited, structure)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the operations of a hook."""
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def visit(self, x: Tensor, producer: _Producer) -> Tensor:
        """Return the result x of an operation plus its deltas."""
        deltas = [delta for where, delta in self._additions if where == producer]
        for delta in deltas:
            x = x + delta
        if deltas:
            self.added[id(x)] = x
        elif not self._additions:
            self.remember(x, producer)
        return x

    def remember(self, x: Tensor, producer: _Producer) -> None:
        """Record the producer of a tensor."""
        self.producers[id(x)] = producer
        self._alive.append(x)  # an id is unique only among objects that are alive


@contextlib.contextmanager
def visited_ports(
    modules: Mapping[nn.Module, Any],
    at: Where,
    visit: Callable[[nn.Module, Tensor], Tensor],
    operations: _OperationCounter | None = None,
) -> Iterator[None]:
    """A context in which ``visit`` replaces the tensor at the port of every call."""
    operations = operations or _OperationCounter()

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        with operations.paused():
            found, args = _replace_first(args, lambda x: visit(module, x))
            if not found:
                found, kwargs = _replace_first(kwargs, lambda x: visit(module, x))
            _require_found(found, module, "input", "output")
        return args, kwargs

    def after(module: nn.Module, args: Any, outputs: Any) -> Any:
        found, outputs = _replace_first(outputs, lambda x: visit(module, x))
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
            f"with respect to; pass at={other!r}, or leave the module out of modules=."
        )


def _replace_first(x: Any, change: Callable[[Tensor], Tensor]) -> tuple[bool, Any]:
    """Change the first floating-point tensor of ``x``. Return (whether there is one, the result).

    Only the top level is searched: the state of a recurrent layer, a tuple inside the tuple of
    results, is no port.
    """
    if isinstance(x, Tensor):
        return (True, change(x)) if _is_floating(x) else (False, x)
    if isinstance(x, Mapping):
        for key in x:
            if _is_floating(x[key]):
                changed: Any = copy.copy(x)  # keeps the type of records such as ModelOutput
                changed[key] = change(x[key])
                return True, changed
    elif isinstance(x, tuple | list):
        for j, item in enumerate(x):
            if _is_floating(item):
                return True, (*x[:j], change(item), *x[j + 1 :])
    return False, x


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _are_types(modules: Any) -> bool:
    return all(isinstance(m, type) for m in (modules if isinstance(modules, tuple) else (modules,)))
