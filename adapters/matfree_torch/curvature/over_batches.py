"""Curvature in the parameters of a network: batches added up, graphs kept, weight decay."""

from __future__ import annotations

import math
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from matfree_torch.curvature.operator import CurvatureOperator
from matfree_torch.curvature.sharded import ShardedCurvature
from matfree_torch.distributed.checksums import Checksum
from matfree_torch.distributed.dtensors import full_tensor, local_tensor
from matfree_torch.hvp.graph_cache import GraphMemory, KeptBatches, Retention
from matfree_torch.objective import faulty_modules
from matfree_torch.objective.batches import Batch
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Parameters, matching

WeightDecay: TypeAlias = float | Mapping[str, float]
"""lambda for every parameter, or by patterns of names; later patterns win."""


_SAME = "give all of them the same model, params= and weight_decay="


class ParameterCurvature(CurvatureOperator):
    """A curvature of a loss in the flat vector of parameters, summed over batches.

    A subclass says what is prepared from a batch once, and how it multiplies a vector.

    Parameters
    ----------
    objective : the loss over the data
    parameters : what vectors consist of
    weight_decay : lambda of the term lambda / 2 ||theta||^2
    strategy : how products are computed
    retention : what is kept of the batches, and how much memory it may take
    """

    title: str
    """What it is a curvature of, for ``repr``."""

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        weight_decay: WeightDecay,
        strategy: str,
        retention: Retention,
    ) -> None:
        super().__init__(objective, parameters)
        self.model, self.batches = objective.model, objective.batches
        self.parameters = parameters
        self.strategy = strategy
        self.weight_decay = _decay(parameters, weight_decay)
        self._kept = KeptBatches(objective, parameters.tensors, retention)
        if objective.communicator is not None:
            chosen = zlib.crc32(repr((parameters.names, self.weight_decay)).encode())
            numbers = float(parameters.size), float(chosen)
            objective.communicator.require_same(
                Checksum("parameters or weight decay", _SAME, numbers)
            )

    @abstractmethod
    def _prepare(self, batch: Batch) -> Any:
        """What a batch contributes, ready to be multiplied by any number of vectors."""

    def _shared(self, batch: Batch) -> Any:
        """The same, once all processes that compute it together are known to have this batch."""
        self.objective.require_same_batch(batch)
        return self._prepare(batch)

    @abstractmethod
    def _multiply(self, prepared: Any, v: dict[str, Tensor], rows: Layout) -> tuple[Tensor, ...]:
        """That batch's curvature times vectors by name, as the rows' pieces."""

    @property
    def memory(self) -> GraphMemory:
        """What the graphs of the batches take; measured on the first one at the first look."""
        with self.parameters.differentiable():
            return self._kept.memory(self._shared)

    def loss(self, direction: Tensor | None = None) -> float:
        """The loss over the same data at the parameters plus a direction.

        Parameters
        ----------
        direction : (n,) tensor, optional
            A step in the flat vector of parameters; none by default. The model stays where
            it is.

        Returns
        -------
        float
            Weighted as the operator is, weight decay included: this is the function whose
            curvature it has.

        Raises
        ------
        ValueError
            The direction is not of shape (n,).

        Cost
        ----
        One pass over the data, forward only.

        Examples
        --------
        >>> import torch
        >>> from matfree_torch import hessian
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> H = hessian(model, torch.nn.MSELoss(), (torch.ones(4, 1), torch.zeros(4, 1)))
        >>> round(H.loss(2 - model.weight.detach()[0]), 6)
        4.0
        """
        moved, given = dict(zip(self.names, self.layout.tensors, strict=True)), None
        if direction is not None:
            steps = self.layout.unflatten(direction)
            given = self.layout.pack(list(steps.values()), self.dtype)[:, None]
            moved = {name: p.detach() + steps[name].to(p.dtype) for name, p in moved.items()}

        def summed() -> Tensor:
            total = torch.zeros(1, dtype=torch.float64, device=self.layout.device)
            with self.objective.isolated():
                for batch in self.batches:
                    with self.objective.isolated(), torch.no_grad():
                        parameters = None if direction is None else moved
                        outputs = self.objective.outputs(batch, parameters)
                        value = self.objective.value(outputs, batch.targets)
                    total += batch.weight * float(value)
            return total

        like = torch.zeros(1, dtype=torch.float64, device=self.layout.device)
        communicator = self.objective.communicator
        reduce = None if communicator is None else communicator.all_reduce
        total = float(self.objective.average(summed, like, given, reduce))
        for name, decay in self.weight_decay.items():
            total += (
                decay
                / 2
                * float(full_tensor(moved[name].detach().to(torch.float64).square().sum()))
            )
        return total

    def gradient(self) -> Tensor:
        """The loss's gradient, (n,), over the same data with the same weights."""

        def summed() -> Tensor:
            total = self._zeros(self.layout)
            with self.parameters.differentiable(), self.objective.isolated():
                for batch in self.batches:
                    with self.objective.isolated():  # the same random numbers as products draw
                        pieces = self.objective.gradients(batch, self.layout.tensors)
                    total += batch.weight * self.layout.pack(pieces)
            return total

        total = self.objective.average(summed, self._zeros(self.layout))
        for name, p in zip(self.names, self.layout.tensors, strict=True):
            decay = self.weight_decay.get(name, 0.0)
            total[self.layout.local_slices[name]] += decay * local_tensor(p.detach()).reshape(-1)
        return self.layout.to_rows(total[:, None])[:, 0]

    def sharded(
        self, rows: Sequence[int] | None = None, *, block_size: int | None = None
    ) -> ShardedCurvature:
        """The same curvature on vectors of which every process holds a part.

        Lanczos vectors, probes and eigenvectors are then never whole anywhere: what an algorithm
        keeps takes a process the share of its rows. Only a product makes some vectors whole, for
        the time it takes.

        Parameters
        ----------
        rows : sequence of int, optional
            How many rows each process holds, by rank; about as many each by default.
        block_size : int, optional
            Vectors that are whole at a time; as many as take a sixteenth of the memory that is
            free by default.

        Returns
        -------
        ShardedCurvature
            Its ``space`` has this process's ``rows``; all processes make the same calls.

        Raises
        ------
        ValueError
            There is no process_group, the rows do not add up to n, or block_size is not positive.

        Cost
        ----
        No product. A product then sends a block twice, once to make it whole and once to add it
        up, where the replicated one sends it twice to add it up.

        Examples
        --------
        >>> import torch
        >>> from matfree_torch import hessian
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)
        >>> hessian(torch.nn.Linear(1, 1), torch.nn.MSELoss(), data).sharded()
        Traceback (most recent call last):
        ...
        ValueError: sharded vectors need several processes; make the operator with process_group=.
        """
        if self.layout.redistribution is not None:
            raise ValueError("the vectors of this operator are cut up already, as its space tells.")
        return ShardedCurvature(self, rows, block_size)

    def _between(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        block = self.summed(X, rows, columns)
        for name in set(rows.names) & set(columns.names) & set(self.weight_decay):
            source, target = columns.local_slices[name], rows.local_slices[name]
            block[target] += self.weight_decay[name] * X[source]
        return block

    def summed(
        self,
        X: Tensor,
        rows: Layout,
        columns: Layout,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """A[rows, columns] @ X over all batches, without weight decay.

        What the processes do not all have, ``reduce`` makes of the sum, with vectors that are
        known to be the same in all of them.
        """
        nothing = X.new_zeros((rows.local_size, X.shape[1]))

        def summed() -> Tensor:
            Y = [self._zeros(rows) for _ in X.T]

            def add(weight: float, prepared: Any) -> None:
                for y, x in zip(Y, X.T, strict=True):
                    v = dict(zip(columns.names, columns.unpack(x), strict=True))
                    y += weight * rows.pack(self._multiply(prepared, v, rows), self.dtype)

            with self.parameters.differentiable():
                self._kept.visit(self._shared, add)
            return torch.stack(Y, dim=1) if Y else nothing

        return self.objective.average(summed, nothing, X if reduce is None else None, reduce)

    def _zeros(self, layout: Layout) -> Tensor:
        return torch.zeros(layout.local_size, dtype=self.dtype, device=layout.device)

    def by_batch(self, visitor: Callable[[Batch, Callable[[Tensor], Tensor]], None]) -> None:
        """Show a visitor each batch, and the product of its own curvature, without decay."""
        self.objective.require_single_process("what is done batch by batch")
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self.objective.precision(),
            faulty_modules.explain_missing_derivatives(self.objective),
            self.parameters.differentiable(),
            self.objective.isolated(),
        ):
            for batch in self.batches:
                visitor(batch, partial(self._columns, self._shared(batch)))

    def _columns(self, prepared: Any, X: Tensor) -> Tensor:
        columns = []
        for x in X.T:
            v = dict(zip(self.names, self.layout.unpack(x), strict=True))
            pieces = self._multiply(prepared, v, self.layout)
            columns.append(self.layout.pack(pieces, self.dtype))
        return torch.stack(columns, dim=1)

    def __repr__(self) -> str:
        n = self.layout.size
        notes = [f"strategy {self.strategy!r}: {self._kept.describe()}"]
        notes += ["positive semidefinite"] * self.positive_semidefinite
        notes += ["weight decay"] * bool(self.weight_decay)
        notes += self._precision_note()
        named = type(getattr(self.model, "function", self.model))
        return f"<{n}x{n} {self.title} of {named.__name__}, {', '.join(notes)}, {self.dtype}>"


def _decay(layout: Layout, given: WeightDecay) -> dict[str, float]:
    """Lambda by parameter, without those where it is 0."""
    decay: dict[str, float] = {}
    by_pattern = given if isinstance(given, Mapping) else {"*": given}
    for pattern, value in by_pattern.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative: got {value!r}.")
        everything = dict.fromkeys(layout.names, float(value))
        decay |= matching(everything, pattern, "parameter")
    return {name: value for name, value in decay.items() if value}
