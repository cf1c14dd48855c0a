"""What results depend on in addition to vectors, compared at every block of matvecs.

These are the modules, parameters, buffers and attributes of the model and of the loss, and data in
memory. Objects are compared by identity, tensors in addition by their version counters and by a
hash of their values, because version counters do not register writes through ``.data`` or NumPy
views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from operator import is_
from typing import Any, final

import torch
from torch import Tensor, nn

from matfree_torch.data.nested import tensors_in
from matfree_torch.distributed.checksums import Checksum, checksum_of_hash
from matfree_torch.distributed.dtensors import is_dtensor
from matfree_torch.distributed.tensor_hash import PendingHash, TensorHash
from matfree_torch.objective.isolation import version_counter
from matfree_torch.objective.module_attributes import (
    holds_objects,
    leaves_of,
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
"""Tensors of the data and the loss with more entries are sampled, because reading them could take
as long as a matvec. All entries of parameters and buffers are read."""


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
        self._model, self._function, self._data, self._sharded = model, function, data, sharded
        self._counters: list[Any] | None = None
        self._groups: list[list[Tensor]] = []
        self._hashes: tuple[int, ...] = ()
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
        self._groups[3] = list(_tensors_of_data(self._data))
        counters = [[(id(x), version_counter(x)) for x in group] for group in self._groups]
        before, self._counters = self._counters, counters
        known = before is not None
        model = known and (attributes or before[:2] != counters[:2])  # type: ignore[index]
        inputs = known and (attributes or before[2:] != counters[2:])  # type: ignore[index]
        if before != counters:
            limits = None, None, None if self._sharded else _SAMPLED_FROM, _SAMPLED_FROM
            self._hash = TensorHash(self._groups, limits)
        self.version += model or inputs
        self._expected = not known or model, not known or inputs
        self._pending = self._hash.start()
        return attributes, inputs

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
        before, self._hashes, self._pending = self._hashes, self._pending(), None
        model = before[:2] != self._hashes[:2] and not self._expected[0]
        inputs = before[2:] != self._hashes[2:] and not self._expected[1]
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
            all(_identical(registry, before) for registry, before in self._registries)
            and same_leaves(self._leaves, leaves_of(self._containers))
            and self._reached.is_same(Reachable(self._function, self._own))
        )

    def _scan(self) -> None:
        """Record all modules, and the tensors that they hold."""
        own = dict(self._model.named_modules())
        self._own = frozenset(map(id, own.values()))
        self._reached = Reachable(self._function, self._own)
        of_loss = {
            f"{prefix}.{name}".strip(".") + " (loss)": module
            for prefix, root in self._reached.modules.items()
            for name, module in root.named_modules()
            if id(module) not in self._own
        }
        self._named = own | of_loss
        before, self._modes = self._modes, [(id(m), m.training) for m in self._named.values()]
        self.structure += before != self._modes
        registries = (r for module in self._named.values() for r in _registries_of(module))
        self._registries = [(registry, list(registry.values())) for registry in registries]
        values = [x for module in self._named.values() for x in own_attributes(module).values()]
        self._containers = [x for x in values if holds_objects(x)]
        self._leaves = leaves_of(self._containers)
        plain = [x for x in (*values, *self._leaves) if isinstance(x, Tensor)]
        shards = [p for p in self._model.parameters() if self._sharded and is_dtensor(p)]
        kept = set(map(id, shards))
        self._groups = [
            [p for p in self._model.parameters() if id(p) not in kept],
            [*self._model.buffers(), *plain],
            [*shards, *_registered_tensors(of_loss.values()), *self._reached.tensors],
            [],
        ]


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


def _tensors_of_data(data: Any) -> Iterator[Tensor]:
    """The tensors of data in memory: of batches, and of the data set of a loader."""
    if isinstance(data, torch.utils.data.TensorDataset):
        yield from data.tensors
    elif isinstance(data, torch.utils.data.DataLoader | torch.utils.data.Subset):
        yield from _tensors_of_data(data.dataset)
    elif isinstance(data, tuple | list | Mapping):
        yield from tensors_in(data)
