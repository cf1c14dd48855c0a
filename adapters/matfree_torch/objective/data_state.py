"""What data consist of: the tensors and settings from which batches are made.

A loader makes batches from a data set, which may be an object of the user's own. Its attributes are
followed, and what its methods and the loader's ``collate_fn`` read from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

from torch import Tensor
from torch.utils import data as torch_data

from matfree_torch.data.nested import tensors_in
from matfree_torch.objective.module_attributes import leaves_of, numeric_tensors, same_leaves
from matfree_torch.objective.reachable import Reachable

_METHODS = "__getitem__", "__getitems__", "__iter__"


@final
class DataState:
    """The tensors and settings from which the batches of some data are made.

    Parameters
    ----------
    data : as the user passed them
    """

    def __init__(self, data: Any) -> None:
        self.in_memory = isinstance(data, tuple | list | Mapping)
        """Whether the data are batches, rather than an object that makes them."""
        self._data = data
        self._leaves: list[Any] = []
        self._tensors: list[Tensor] = []
        self.update()

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors found by the last update; of batches in memory, the present ones."""
        return list(tensors_in(self._data)) if self.in_memory else self._tensors

    def update(self) -> bool:
        """Search again; whether objects and settings differ from those of the last search."""
        before, self._leaves = self._leaves, [] if self.in_memory else _leaves_of_data(self._data)
        changed = not same_leaves(before, self._leaves)
        if changed:
            self._tensors = numeric_tensors(self._leaves)
        return changed


def _leaves_of_data(data: Any) -> list[Any]:
    sources = list(_sources_of(data))
    methods = (getattr(x, name, None) for x in sources for name in _METHODS)
    reached = Reachable([x for x in (*sources, *methods) if callable(x)])
    modules = reached.modules.values()
    registered = (x for m in modules for x in (*m.parameters(), *m.buffers()))
    found = leaves_of(sources)
    known = set(map(id, found))
    others = (x for x in (*reached.tensors, *registered) if id(x) not in known)
    return [*found, *reached.settings, *others]


def _sources_of(data: Any) -> Iterator[Any]:
    """The objects of the user's own that loaders and data sets of torch are made of."""
    if isinstance(data, torch_data.DataLoader):
        yield from _sources_of(data.dataset)
        yield data.collate_fn
    elif isinstance(data, torch_data.Subset):
        yield from _sources_of(data.dataset)
        yield data.indices
    elif isinstance(data, torch_data.ConcatDataset | torch_data.ChainDataset):
        for dataset in data.datasets:
            yield from _sources_of(dataset)
    elif isinstance(data, torch_data.TensorDataset | torch_data.StackDataset):
        for dataset in getattr(data, "tensors", getattr(data, "datasets", ())):
            yield from _sources_of(dataset)
    else:
        yield data
