"""Batches prepared for products: kept while they fit a budget of memory, else made again.

What a product needs from a batch, the gradient's graph for one, takes a forward and a
gradient to make, and as much memory as the activations several times over. Kept or made
again, the numbers are the same to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, final

from torch import Tensor, nn

from matfree_torch.autograd.graph_memory import SavedTensors, available_memory, readable
from matfree_torch.objective import isolation
from matfree_torch.objective.batches import Batch, tensors_in
from matfree_torch.objective.objective import Objective

Prepare: TypeAlias = Callable[[Batch], Any]
"""From a batch to what products need."""

_SHARE = 0.5  # of what is free: products, bases and the next graph need some too


@final
@dataclass(frozen=True)
class GraphMemory:
    """What an operator's prepared batches take.

    Examples
    --------
    >>> import torch
    >>> from matfree_torch import hessian
    >>> model = torch.nn.Linear(2, 1)
    >>> batch = torch.randn(5, 2), torch.randn(5, 1)
    >>> H = hessian(model, torch.nn.MSELoss(), [batch, batch], memory=10**6)
    >>> _ = H @ torch.ones(3)
    >>> H.memory.kept, H.memory.num_batches, H.memory.per_batch > 0
    (2, 2, True)
    """

    per_batch: int
    """Bytes that the first batch's graph holds, measured; 0 where it cannot be watched, because
    the model or the loss differentiates by torch.func inside."""
    num_batches: int | None
    """Batches in the data; None where the data do not tell before they are gone through."""
    kept: int
    """Batches that are kept now."""
    budget: int
    """Bytes that kept ones may take together."""

    def __str__(self) -> str:
        several = "?" if self.num_batches is None else str(self.num_batches)
        return (
            f"{readable(self.per_batch)} a batch, {self.kept} of {several} kept, "
            f"budget {readable(self.budget)}"
        )


@final
@dataclass(frozen=True)
class Retention:
    """What is kept of the batches."""

    budget: int | None = None
    """Bytes that they may take; half of what is free by default, seen at the first pass."""
    contents: Literal["graphs", "folds", "nothing"] = "graphs"
    """Graphs are kept while they fit, and folds by all means."""


class _Kept(NamedTuple):
    prepared: Any
    weight: float
    checksum: tuple[float, float] | None
    size: int


@final
class KeptBatches:
    """The batches of an objective, prepared.

    Graphs are measured on the first batch and predicted for the others from their size.

    Parameters
    ----------
    objective : the loss over the data
    known : tensors that lie in memory anyway: the parameters
    retention : what is kept
    """

    def __init__(self, objective: Objective, known: list[Tensor], retention: Retention) -> None:
        self.objective, self.batches = objective, objective.batches
        self.contents, self._known = retention.contents, known
        self._budget = 0 if retention.contents == "nothing" else retention.budget
        self._kept: list[_Kept] = []
        self._made_at: tuple[Any, ...] | None = None
        self._complete = self._confirmed = self._reordered = False
        self._first: tuple[int, int] | None = None  # bytes of its graph, and its extent
        self._unwatched = False
        self._num_sharing_memory = objective.num_sharing_memory

    def visit(self, prepare: Prepare, visitor: Callable[[float, Any], None]) -> None:
        """Show every batch's weight, and what is prepared from it, to a visitor.

        Where all batches are kept, the data are read twice and no more: the second time shows
        whether they are the same every time.
        """
        now = self._state()
        if now != self._made_at:  # never the graph of other weights
            self._forget()
            if self._made_at is not None and now[1:] != self._made_at[1:]:
                self.batches.reset()  # other data, on purpose
            self._made_at = now
        if self._complete:
            self._confirm()
            for kept in self._kept:
                visitor(kept.weight, kept.prepared)
            return
        self._confirmed = self.batches.single or self.batches.total is not None
        count = 0
        with self.objective.isolated():
            for batch in self.batches:
                visitor(batch.weight, self._take(prepare, count, batch))
                count += 1
        self._complete = count == len(self._kept)

    @property
    def budget(self) -> int:
        """Bytes that kept batches may take together."""
        if self._budget is None:
            free = available_memory(self._known[0].device)
            share = _SHARE / self._num_sharing_memory
            own = 2**31 if free is None else math.floor(share * free)
            self._budget = min(self.objective.gather_over_mesh(own))
        return self._budget

    def memory(self, prepare: Prepare) -> GraphMemory:
        """What the prepared batches take; measured on the first one, if none was made yet."""
        if self._first is None and self.contents == "folds":
            self.visit(prepare, lambda weight, prepared: None)
        elif self._first is None:
            with self.objective.isolated():
                first = next(iter(self.batches), None)
            if first is not None:
                self._measure(prepare, first)
        if self._first is None:  # no batch is here; other processes have some
            return GraphMemory(0, 0, 0, self.budget)
        data = self.batches.data
        known = len(data) if hasattr(data, "__len__") else None
        count = 1 if self.batches.single else known
        return GraphMemory(self._first[0], count, len(self._kept), self.budget)

    def describe(self) -> str:
        """How many are kept, for ``repr``: nothing is measured for it."""
        if self.contents == "nothing":
            return "no graph kept"
        if self._budget == 0:
            return "graph recomputed per block"
        if self._made_at is None:
            return "no product yet"
        count, noun = len(self._kept), self.contents.removesuffix("s")
        kept = f"{noun} kept" if count == 1 else f"{count} {noun}s kept"
        return kept if self._complete else f"{kept}, the others recomputed per block"

    def _state(self) -> tuple[Any, ...]:
        """Changes with the model, with the loss's own tensors, and with data that lie in memory."""
        loss, data = self.objective.loss, self.batches.data
        lying = tensors_in(data) if isinstance(data, tuple | list | Mapping) else ()
        return (
            isolation.version_counters(self.objective.model),
            isolation.version_counters(loss) if isinstance(loss, nn.Module) else None,
            [isolation.version_counter(x) for x in lying],
        )

    def _take(self, prepare: Prepare, place: int, batch: Batch) -> Any:
        """What is prepared from a batch, kept or made.

        Every preparation is guarded by itself, so that it draws the same random numbers
        whichever others are made.
        """
        if place < len(self._kept):
            if self._kept[place].checksum == batch.checksum:
                return self._kept[place].prepared
            self._forget()  # the same samples, in other batches: none of these comes again
            self._reordered = True
        measured = self._first is None and self.contents == "graphs"
        if measured and self._budget != 0 and not self._reordered:
            self._measure(prepare, batch)
        with self.objective.isolated():
            prepared = prepare(batch)
        if self._budget == 0 or self._reordered:
            return prepared
        size = self._size(prepared, batch)
        used = sum(kept.size for kept in self._kept)
        if place == len(self._kept) and used + size <= self.budget:
            self._kept.append(_Kept(prepared, batch.weight, batch.checksum, size))
        elif self.contents == "folds":
            raise MemoryError(
                f"what is folded from {place + 1} batches takes {readable(used + size)}, and the "
                f"budget is {readable(self.budget)}; raise memory=, or take strategy='auto', which "
                "makes again what does not fit."
            )
        return prepared

    def _measure(self, prepare: Prepare, batch: Batch) -> None:
        saved = SavedTensors(self._known, self._known[0].device)
        try:
            with self.objective.isolated(), saved.watched():
                graph = prepare(batch)
        except RuntimeError as refusal:
            if "saved tensor hooks" not in str(refusal):
                raise
            self._first = 0, _extent(batch)  # torch.func inside the loss cannot be watched
            self._unwatched = True
            return
        size = max(self.objective.gather_over_mesh(saved.bytes()))
        self._first = size, _extent(batch)
        del graph  # with hooks on every saved tensor it would be slow

    def _size(self, prepared: Any, batch: Batch) -> int:
        if self.contents == "folds":
            self._first = self._first or (prepared.nbytes, _extent(batch))
            return int(prepared.nbytes)
        assert self._first is not None
        if self._unwatched:  # one graph is worth the risk, several of unknown size are not
            return 0 if self.batches.single else self.budget + 1
        size, extent = self._first
        return math.ceil(size * _extent(batch) / max(1, extent))

    def _confirm(self) -> None:
        """Read the data once more, for themselves: another content is an error."""
        if not self._confirmed:
            with self.objective.isolated():
                for _ in self.batches:
                    pass
            self._confirmed = True

    def _forget(self) -> None:
        self._kept, self._complete = [], False


def _extent(batch: Batch) -> int:
    return sum(x.numel() for x in tensors_in((batch.inputs, batch.targets)))
