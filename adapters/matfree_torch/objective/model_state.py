"""What results depend on in addition to vectors, compared at every block of matvecs.

These are the modules, parameters, buffers and attributes of the model and of the loss, and data in
memory. Objects are compared by identity, tensors in addition by their version counters and by a
hash of their values, because version counters do not register writes through ``.data`` or NumPy
views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any, final

from torch import Tensor, nn

from matfree_torch.distributed.checksums import Checksum, checksum_of_hash
from matfree_torch.distributed.dtensors import is_dtensor
from matfree_torch.distributed.tensor_hash import PendingHash, TensorHash
from matfree_torch.objective import isolation
from matfree_torch.objective.data_state import DataState
from matfree_torch.objective.model_calls import FunctionModule
from matfree_torch.objective.module_attributes import (
    holds_objects,
    leaves_of,
    numeric_tensors,
    own_attributes,
    same_leaves,
)
from matfree_torch.objective.reachable import Reachable

_REMEDY_WEIGHTS = "load the same weights in all processes"
_REMEDY_BUFFERS = (
    "each process updates its own running statistics: copy those of one process to the others with "
    "torch.distributed.broadcast"
)
_REGISTRIES = "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"
_SAMPLED_FROM = 1 << 22
"""Tensors of the data, of the loss and of attributes with more entries are sampled, because reading
them could take as long as a matvec. All entries of parameters and buffers are read."""


@final
class ModelState:
    """The state of a model, a loss and data, and a number that changes with it.

    Parameters
    ----------
    model : nn.Module
    function : callable or None
        What is called in addition to the model: the loss, or the function of ``hessian_of``.
    data : the data that the user passed
    sharded : bool
        Whether the processes hold different shards of the same parameters, so that checksums of
        the shards must not be compared.
    """

    def __init__(self, model: nn.Module, function: Any, data: Any, *, sharded: bool) -> None:
        self.version = 0
        """A number that changes whenever results may change."""
        self.structure = 0
        """A number that changes whenever modules are exchanged, or change between training and
        evaluation mode."""
        self._model, self._function, self._sharded = model, function, sharded
        self._source = DataState(data)
        self.found: list[nn.Module] = []
        """Modules that evaluations have called, and that no search had found before."""
        self._counters: list[Any] | None = None
        self._groups: list[list[Tensor]] = []
        self._hashes: tuple[int, ...] = ()
        self._hash_of_data: int | None = None
        self._pending: PendingHash | None = None
        self._expected = False, False
        self._named: dict[str, nn.Module] = {}
        self._modes: list[tuple[int, bool]] = []
        self._scan()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules of the model and of the loss, each once, with their names."""
        yield from self._named.items()

    @property
    def modules(self) -> list[nn.Module]:
        """All modules of the model and of the loss."""
        return list(self._named.values())

    def begin(self) -> tuple[bool, bool]:
        """Compare objects and version counters, and start to hash values.

        Returns
        -------
        Whether modules or their attributes have changed, and whether the loss or data have.
        """
        attributes = not self._is_current()
        if attributes:
            self._scan()
        data = self._source.update()
        self._groups[3] = self._source.tensors
        counters = list(map(_counters_of, self._groups))
        before, self._counters = self._counters, counters
        known = before is not None
        model = known and (attributes or before[:2] != counters[:2])  # type: ignore[index]
        inputs = known and (attributes or data or before[2:] != counters[2:])  # type: ignore[index]
        if before != counters:
            self._hash = self._new_hash()
        self.version += model or inputs
        self._expected = not known or model, not known or inputs
        self._pending = self._hash.start()
        return attributes, inputs

    def _new_hash(self) -> TensorHash:
        limits = None, None, None if self._sharded else _SAMPLED_FROM, _SAMPLED_FROM
        return TensorHash(self._groups, limits)

    def pass_ends(self) -> None:
        """Accept what a pass over the data has changed in them, such as a counter of passes.

        Such data have to be the same in the next pass, unlike data that the user changes.
        """
        if self._counters is None or self._source.in_memory:
            return
        changed, self._groups[3] = self._source.update(), self._source.tensors
        counters = _counters_of(self._groups[3])
        if changed or counters != self._counters[3]:
            self._counters[3], self._hash = counters, self._new_hash()
            self._hash_of_data = TensorHash([self._groups[3]], [_SAMPLED_FROM]).start()()[0]
            if self._pending is None:
                self._hashes = (*self._hashes[:3], self._hash_of_data)

    @property
    def asynchronous(self) -> bool:
        """Whether a device computes the hashes while the host continues."""
        return self._hash.asynchronous

    def settle(self) -> tuple[bool, bool]:
        """Wait for the hashes that :meth:`begin` started.

        Returns
        -------
        Whether values of the model, and of the loss or data, have changed without any other sign.
        """
        if self._pending is None:
            return False, False
        before, now, self._pending = self._hashes, self._pending(), None
        model = before[:2] != now[:2] and not self._expected[0]
        inputs = before[2:] != now[2:] and not self._expected[1]
        last, self._hash_of_data = self._hash_of_data, None
        self._hashes = now if last is None else (*now[:3], last)
        self.version += model or inputs
        return model, inputs

    def checksums(self) -> tuple[Checksum, ...]:
        """The checksums of weights and buffers, for comparison with those of other processes."""
        return (
            checksum_of_hash("weights", _REMEDY_WEIGHTS, self._hashes[0]),
            checksum_of_hash("buffers", _REMEDY_BUFFERS, self._hashes[1]),
        )

    def _is_current(self) -> bool:
        return (
            len(self.found) == self._num_found
            and self._code == _code_of(self._named.values())
            and all(_identical(registry, before) for registry, before in self._registries)
            and same_leaves(self._leaves, leaves_of(self._containers))
            and self._reached.is_current()
        )

    def _scan(self) -> None:
        """Record all modules, and the tensors that they hold."""
        own = dict(self._model.named_modules())
        of_function = isinstance(self._model, FunctionModule)
        self._reached = Reachable(self._function, None if of_function else own)
        others = self._other_modules(set(map(id, own.values())))
        self._named = own | others
        before, self._modes = self._modes, [(id(m), m.training) for m in self._named.values()]
        self.structure += before != self._modes
        self._code = _code_of(self._named.values())
        registries = (r for module in self._named.values() for r in _registries_of(module))
        self._registries = [(registry, list(registry.values())) for registry in registries]
        values = [x for module in self._named.values() for x in own_attributes(module).values()]
        self._containers = [x for x in values if holds_objects(x)]
        self._leaves = leaves_of(self._containers)
        plain = numeric_tensors((*values, *self._leaves))
        held = set(map(id, (*values, *self._leaves)))
        reached = numeric_tensors(x for x in self._reached.tensors if id(x) not in held)
        large = [x for x in plain if x.numel() > _SAMPLED_FROM]
        plain = [x for x in plain if x.numel() <= _SAMPLED_FROM]
        shards = [p for p in self._model.parameters() if self._sharded and is_dtensor(p)]
        kept = set(map(id, shards))
        self._groups = [
            [p for p in self._model.parameters() if id(p) not in kept],
            [*self._model.buffers(), *plain],
            [*shards, *_registered_tensors(others.values()), *reached, *large],
            [],
        ]

    def _other_modules(self, seen: set[int]) -> dict[str, nn.Module]:
        """The modules that are not registered in the model, by names that say where they are."""
        others: dict[str, nn.Module] = {}
        found = {type(module).__name__: module for module in self.found}
        for prefix, root in (self._reached.modules | found).items():
            hidden = prefix in found or prefix in self._reached.of_model
            place = isolation.NOT_REGISTERED if hidden else "(loss)"
            for name, module in root.named_modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    others[f"{prefix}.{name}".strip(".") + f" {place}"] = module
        self._num_found = len(self.found)
        return others


def _code_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The classes of modules and what they compute, either of which may be replaced."""
    kinds = list(map(type, modules))
    # Scripted modules have a descriptor that cannot be read from the class.
    defined = (vars(base) for kind in dict.fromkeys(kinds) for base in kind.__mro__)
    return [*kinds, *(names["forward"] for names in defined if "forward" in names)]


def _counters_of(tensors: Iterable[Tensor]) -> list[Any]:
    return [(id(x), isolation.version_counter(x)) for x in tensors]


def _registered_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of modules, without those of their submodules."""
    found = [x for m in modules for x in (*m._parameters.values(), *m._buffers.values())]
    return [x for x in found if x is not None]


def _registries_of(module: nn.Module) -> Iterator[Any]:
    """The dictionaries of a module: its attributes, parameters, buffers, submodules and hooks."""
    yield vars(module)
    for name in _REGISTRIES:
        yield getattr(module, name)


def _identical(registry: Any, before: list[Any]) -> bool:
    """Whether a dictionary has the same objects as values as before."""
    count = len(registry)
    return count == len(before) and (not count or all(map(is_, registry.values(), before)))
