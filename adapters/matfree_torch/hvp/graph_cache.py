"""A cache of what products need from each batch, within a budget of memory.

A Hessian-vector product needs the graph of the gradient for every batch. Building a graph takes a
forward and a backward pass, and it holds several times as much memory as the activations. The
cache keeps as many graphs as fit into its budget and rebuilds the others for every block of
vectors. The results are identical bit for bit either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, final

from matfree.results.record import readable
from matfree_torch.autograd.graph_memory import SavedTensors, available_memory
from matfree_torch.data.nested import tensors_in
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.objective.reproducibility import loss_of_batch, require_reproducible
from matfree_torch.vectors.layout import Layout

Prepare: TypeAlias = Callable[[Batch], Any]
"""A function from a batch to what products need."""

_CACHE_SHARE = 0.5  # of the free memory: products, Lanczos vectors and the next graph need some


@final
@dataclass(frozen=True)
class GraphMemory:
    """The memory that the graphs of an operator's batches take.

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
    """Bytes that the graph of the first batch holds, as measured; 0 if it cannot be measured,
    because the model or the loss uses torch.func."""
    num_batches: int | None
    """Batches in the data; None if the data have no ``len``."""
    kept: int
    """Batches whose graphs are kept at present."""
    budget: int
    """Bytes that all kept graphs together may take."""

    def __str__(self) -> str:
        several = "?" if self.num_batches is None else str(self.num_batches)
        return (
            f"{readable(self.per_batch)} a batch, {self.kept} of {several} kept, "
            f"budget {readable(self.budget)}"
        )


@final
@dataclass(frozen=True)
class CachePolicy:
    """The kind of data that is stored of the batches between matvecs, and its memory limit."""

    budget: int | None = None
    """Bytes; by default half of the memory that is free at the first pass."""
    contents: Literal["graphs", "folds", "nothing"] = "graphs"
    """Graphs are kept as long as they fit. Folded programs have to fit, or it is an error."""


class _CachedBatch(NamedTuple):
    prepared: Any
    weight: float
    checksum: tuple[float, float] | None
    size: int


@final
class GraphCache:
    """The prepared batches of an objective.

    The graph of the first batch is measured. The graphs of the others are predicted from the
    sizes of the batches, so that a graph that does not fit is not kept.

    Parameters
    ----------
    objective : the loss over the data
    layout : tensors that are in memory in any case and do not count
    policy : what is kept
    """

    def __init__(self, objective: Objective, layout: Layout, policy: CachePolicy) -> None:
        self.objective, self.batches = objective, objective.batches
        self.contents, self._layout = policy.contents, layout
        self._budget = 0 if policy.contents == "nothing" else policy.budget
        self._entries: list[_CachedBatch] = []
        self._valid_for: int | None = None
        self._complete = self._confirmed = self._reordered = False
        self._first: tuple[int, int] | None = None  # bytes of the graph, entries of the batch
        self._unmeasurable = self._reproducible = False
        self._num_sharing_memory = objective.num_sharing_memory

    def visit(self, prepare: Prepare, visitor: Callable[[float, Any], None]) -> None:
        """Call the visitor with the weight of every batch and what is prepared from it.

        If all batches are kept, the data are read only twice. The second pass checks that the
        data are the same in every pass.
        """
        version = self.objective.state.version
        if version != self._valid_for:  # a graph is only valid at the weights it was built at
            self._clear()
            self._valid_for = version
        if self._complete:
            self._confirm()
            for entry in self._entries:
                visitor(entry.weight, entry.prepared)
            return
        self._confirmed = self.batches.single or self.batches.total is not None
        count = 0
        with self.objective.isolated():
            for batch in self.batches:
                visitor(batch.weight, self._take(prepare, count, batch))
                count += 1
        self._complete = count == len(self._entries)

    @property
    def budget(self) -> int:
        """Bytes that all kept batches together may take."""
        if self._budget is None:
            free = available_memory(self._layout.device)
            share = _CACHE_SHARE / self._num_sharing_memory
            local = 2**31 if free is None else math.floor(share * free)
            # Processes that compute a batch together have to keep the same graphs.
            self._budget = min(self.objective.gather_over_mesh(local))
        return self._budget

    def memory(self, prepare: Prepare) -> GraphMemory:
        """Return the memory use; the first batch is measured now if no batch was prepared yet."""
        if self._first is None and self.contents == "folds":
            self.visit(prepare, lambda weight, prepared: None)
        elif self._first is None:
            with self.objective.isolated():
                first = next(iter(self.batches), None)
            if first is not None:
                self._measure(prepare, first)
        if self._first is None:  # this process has no batch, but others have
            return GraphMemory(0, 0, 0, self.budget)
        data = self.batches.data
        length = len(data) if hasattr(data, "__len__") else None
        count = 1 if self.batches.single else length
        return GraphMemory(self._first[0], count, len(self._entries), self.budget)

    def describe(self) -> str:
        """Describe for ``repr`` how many graphs are stored, without measuring any."""
        if self.contents == "nothing":
            return "no graph kept"
        if self._budget == 0:
            return "graph recomputed per block"
        if self._valid_for is None:
            return "no matvec yet"
        count, noun = len(self._entries), self.contents.removesuffix("s")
        kept = f"{noun} kept" if count == 1 else f"{count} {noun}s kept"
        return kept if self._complete else f"{kept}, the others recomputed per block"

    def _take(self, prepare: Prepare, index: int, batch: Batch) -> Any:
        """Return what is prepared from batch number ``index``, from the cache if it is kept.

        Every preparation is isolated, so that the random numbers it draws do not depend on which
        other batches are prepared.
        """
        if index < len(self._entries):
            if self._entries[index].checksum == batch.checksum:
                return self._entries[index].prepared
            # A shuffling loader composes new batches in every pass. No entry will match again.
            self._clear()
            self._reordered = True
        measured = self._first is None and self.contents == "graphs"
        if measured and self._budget != 0 and not self._reordered:
            self._measure(prepare, batch)
        prepared = self._prepare_checked(prepare, batch)
        if self._budget == 0 or self._reordered:
            return prepared
        size = self._size(prepared, batch)
        used = sum(entry.size for entry in self._entries)
        if index == len(self._entries) and used + size <= self.budget:
            self._entries.append(_CachedBatch(prepared, batch.weight, batch.checksum, size))
        elif self.contents == "folds":
            raise MemoryError(
                f"the folded programs of {index + 1} batches take {readable(used + size)}, and the "
                f"budget is {readable(self.budget)}; raise memory=, or pass strategy='auto', which "
                "recomputes the graphs that do not fit."
            )
        return prepared

    def _prepare_checked(self, prepare: Prepare, batch: Batch) -> Any:
        """Prepare a batch; for the first one, check that another evaluation gives the same loss."""
        before = None if self._reproducible else loss_of_batch(self.objective, batch)
        with self.objective.isolated():
            prepared = prepare(batch)
        if before is not None:
            after = self.objective.last_value
            if after is None or after is before:  # the strategy evaluates the loss in matvecs only
                after = loss_of_batch(self.objective, batch)
            require_reproducible(self.objective, batch, before, after)
            self._reproducible = True
        return prepared

    def _measure(self, prepare: Prepare, batch: Batch) -> None:
        """Build the graph of a batch with hooks on its saved tensors, and record its size."""
        saved = SavedTensors(self._layout.tensors, self._layout.device)
        try:
            with self.objective.isolated(), saved.watched():
                graph = prepare(batch)
        except RuntimeError as refusal:
            if "saved tensor hooks" not in str(refusal):
                raise
            # torch.func, used inside the model or the loss, does not allow these hooks.
            self._first = 0, _entries_in(batch)
            self._unmeasurable = True
            return
        size = max(self.objective.gather_over_mesh(saved.bytes()))
        self._first = size, _entries_in(batch)
        del graph  # the hooks on its saved tensors would make products slow

    def _size(self, prepared: Any, batch: Batch) -> int:
        """Bytes that a prepared batch takes, measured or predicted."""
        if self.contents == "folds":
            self._first = self._first or (prepared.nbytes, _entries_in(batch))
            return int(prepared.nbytes)
        assert self._first is not None
        if self._unmeasurable:
            # A single graph of unknown size is kept. It is in memory during a product anyway.
            return 0 if self.batches.single else self.budget + 1
        size, num_entries = self._first
        return math.ceil(size * _entries_in(batch) / max(1, num_entries))

    def _confirm(self) -> None:
        """Read the data a second time, which raises an error if they have changed."""
        if not self._confirmed:
            with self.objective.isolated():
                for _ in self.batches:
                    pass
            self._confirmed = True

    def _clear(self) -> None:
        self._entries, self._complete = [], False


def _entries_in(batch: Batch) -> int:
    return sum(x.numel() for x in tensors_in((batch.inputs, batch.targets)))
