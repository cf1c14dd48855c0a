"""The activation Hessian of a batch whose samples are distributed over several processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor

from matfree import Estimate, Operator, OperatorError
from matfree.protocol import Array, Seed
from matfree_torch.activations.operator import ActivationHessian
from matfree_torch.activations.port_traces import (
    BatchTraces,
    PortTraceMethod,
    TraceSettings,
    combine_batches,
    port_traces,
)
from matfree_torch.activations.ports import Selection, Where
from matfree_torch.distributed.collectives import Communicator
from matfree_torch.distributed.space import ShardedSpace
from matfree_torch.objective.objective import Objective
from matfree_torch.vectors.layout import Layout, Patterns


@final
class SharedActivationHessian(Operator):
    """The Hessian of a loss with respect to activations of samples on several processes.

    It is returned by :func:`activation_hessian` with a process_group. All processes make the
    same calls. Vectors are sharded by rows: first the rows of rank 0, then those of rank 1, and
    so on. In the block of one port the rows have the order of the samples, as in one process
    with all samples.

    Examples
    --------
    >>> import torch, torch.distributed as dist, matfree_torch
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model, data = torch.nn.Linear(2, 1), (torch.ones(4, 2), torch.zeros(4, 1))
    >>> options = {"modules": torch.nn.Linear, "process_group": dist.group.WORLD}
    >>> A = matfree_torch.activation_hessian(model, torch.nn.MSELoss(), data, **options)
    >>> A.shape, A.partition
    ((8, 8), {'Linear': slice(0, 8, None)})
    >>> dist.destroy_process_group()
    """

    def __init__(
        self, objective: Objective, communicator: Communicator, modules: Selection, at: Where
    ) -> None:
        def build() -> tuple[ActivationHessian, float]:
            model, loss, data = objective.model, objective.loss, objective.batches.data
            single = Objective(model, loss, data, batch=True, allow_tf32=objective.allow_tf32)
            local = ActivationHessian(single, modules, at)
            return local, single.batches.divisor

        self.objective, self.communicator = objective, communicator
        self.local, weight = objective.run_checked(build)
        own = self.local.names, self.local.layout.sizes, weight
        gathered = communicator.all_gather_object(lambda: own)
        others = [rank for rank, (names, *_) in enumerate(gathered) if names != gathered[0][0]]
        if others:
            raise OperatorError(
                f"process {others[0]} calls other modules, {gathered[others[0]][0]}, than process "
                f"0, {gathered[0][0]}; give all processes the same model and modules=."
            )
        self._sizes = {
            name: [sizes[index] for _, sizes, _ in gathered]
            for index, name in enumerate(self.local.names)
        }
        total = sum(weight for _, _, weight in gathered)
        self._scale = weight / total if objective.batches.averaged else 1.0
        super().__init__(self._space(self.local.layout))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the ports, in the order of the calls."""
        return self.local.names

    @property
    def partition(self) -> dict[str, slice]:
        """The slice of each port among the local rows of this process."""
        return self.local.partition

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The local rows of a vector from tensors of this process's samples, by port."""
        return self.local.flatten(tensors)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The local rows of a vector as tensors by port."""
        return self.local.unflatten(vector)

    def block(self, rows: Patterns, columns: Patterns | None = None) -> SharedActivationBlock:
        """A[rows, columns] by names of ports; a principal submatrix if ``columns`` is None."""
        chosen = self.local.layout.subset(rows)
        other = chosen if columns is None else self.local.layout.subset(columns)
        return SharedActivationBlock(self, chosen, other)

    def traces(
        self,
        method: PortTraceMethod = "auto",
        *,
        num_probes: int = 32,
        seed: Seed = None,
        per_sample: bool = False,
    ) -> dict[str, Estimate]:
        """The trace of the diagonal block of every port, over the samples of all processes.

        Parameters
        ----------
        method, num_probes, seed, per_sample
            As for :func:`activation_traces`. The samples of each process are one batch.

        Returns
        -------
        dict of name to Estimate
            The same on all processes.

        Raises
        ------
        OperatorError, ValueError
            As for :func:`activation_traces`.

        Cost
        ----
        As for :func:`activation_traces`, and one all-gather.
        """
        TraceSettings.make(method, num_probes, 0, per_sample)  # fails before any communication
        agreed = self.objective.agreed_seed(seed)
        settings = TraceSettings.make(method, num_probes, agreed, per_sample)

        def local_traces() -> BatchTraces:
            with self.objective.precision():
                return [(self._scale, port_traces(self.local, settings, self.communicator.rank))]

        return combine_batches(self.objective.gather_items(local_traces), settings)

    def apply_block(self, X: Tensor, rows: Layout, columns: Layout) -> Tensor:
        """The local rows of A[rows, columns] @ X, which depend only on the local rows of X."""

        def multiply() -> Tensor:
            self.local.inspect()
            return self._scale * self.local.apply_block(X, rows, columns)

        return self.objective.run_checked(multiply)

    def _apply(self, X: Array) -> Array:
        return self.apply_block(X, self.local.layout, self.local.layout)

    _apply_adjoint = _apply

    def _space(self, layout: Layout) -> ShardedSpace:
        by_port = [self._sizes[name] for name in layout.names]
        counts = [sum(sizes) for sizes in zip(*by_port, strict=True)]
        return ShardedSpace(self.communicator, counts, self.local.dtype)

    def __repr__(self) -> str:
        n = self.shape[0]
        return f"<{n}x{n} over {self.communicator.size} processes, this one with {self.local!r}>"


@final
class SharedActivationBlock(Operator):
    """A block of a shared activation Hessian, returned by its method ``block``."""

    def __init__(self, whole: SharedActivationHessian, rows: Layout, columns: Layout) -> None:
        space = whole._space(rows)
        super().__init__(space, space if rows is columns else whole._space(columns))
        self.whole, self.rows, self.columns = whole, rows, columns

    def _apply(self, X: Array) -> Array:
        return self.whole.apply_block(X, self.rows, self.columns)

    def _apply_adjoint(self, X: Array) -> Array:
        return self.whole.apply_block(X, self.columns, self.rows)

    def __repr__(self) -> str:
        m, n = self.shape
        sides = " x ".join(
            dict.fromkeys((", ".join(self.rows.names), ", ".join(self.columns.names)))
        )
        return f"<{m}x{n} block {sides} of {self.whole!r}>"
