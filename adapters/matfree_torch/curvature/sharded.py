"""Vectors cut into rows that several processes hold, and curvatures on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from matfree import Operator, OperatorError
from matfree.protocol import Array
from matfree_torch.autograd.graph_memory import columns_at_once
from matfree_torch.distributed.checksums import Checksum
from matfree_torch.distributed.redistribution import even_rows
from matfree_torch.distributed.space import ShardedSpace

if TYPE_CHECKING:
    from matfree_torch.curvature.over_batches import ParameterCurvature

_ARGUMENTS = "give all of them the same arguments"


@final
class ShardedCurvature(Operator):
    """A curvature in parameters on vectors cut into pieces; made by its ``sharded``.

    Parameters
    ----------
    whole : ParameterCurvature
        The same on whole vectors, over data that several processes share out.
    rows : the rows of each process, by rank; None for about as many each
    block_size : vectors that are whole at a time; None for as many as fit well

    Examples
    --------
    Every process runs the same lines; this is what one that is alone sees:

    >>> import matfree as mf, torch, torch.distributed as dist
    >>> from matfree_torch import hessian
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model, data = torch.nn.Linear(2, 1, bias=False), (torch.eye(2), torch.zeros(2, 1))
    >>> H = hessian(model, torch.nn.MSELoss(), data, process_group=dist.group.WORLD)
    >>> mf.trace(H.sharded(), num_probes=2, seed=0).value
    2.0
    >>> dist.destroy_process_group()
    """

    space: ShardedSpace

    def __init__(
        self, whole: ParameterCurvature, rows: Sequence[int] | None, block_size: int | None
    ) -> None:
        communicator = whole.objective.communicator
        if communicator is None:
            raise ValueError(
                "sharded vectors need several processes; make the operator with process_group=."
            )
        self.whole, self.communicator, self._block_size = whole, communicator, block_size
        counts = list(rows or map(len, even_rows(whole.layout.size, communicator.size)))
        told = communicator.all_gather_object(
            lambda: self._sensible(counts)
        )  # one that is wrong ends all
        others = [rank for rank, answer in enumerate(told) if answer != told[0]]
        if others:
            raise OperatorError(
                f"process {others[0]} was given other rows or another block_size, "
                f"{told[others[0]]}, than process 0, {told[0]}; give all of them the same."
            )
        super().__init__(ShardedSpace(communicator, counts, whole.dtype))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the whole vector."""
        return self.whole.names

    @property
    def partition(self) -> dict[str, slice]:
        """Where each tensor lies in the whole vector."""
        return self.whole.partition

    @property
    def positive_semidefinite(self) -> bool:
        """Whether x^T A x >= 0 for every x, by construction."""
        return self.whole.positive_semidefinite

    @property
    def noise(self) -> float:
        """The relative rounding error of products, as the whole operator's."""
        return self.whole.noise

    def gather(self, X: Tensor) -> Tensor:
        """A vector or a block, (rows,) or (rows, k) in each process, whole in all of them."""
        return self.space.gather(X)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The rows of this process, (rows,), of tensors by name."""
        rows = self.space.rows
        return self.whole.flatten(tensors)[rows.start : rows.stop].clone()

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector, (rows,) in each process, as whole tensors by name; all processes call it."""
        return self.whole.unflatten(self.gather(vector))

    def _apply(self, X: Array) -> Array:
        count = float(X.shape[1])
        self.communicator.require_same(Checksum("numbers of vectors", _ARGUMENTS, (count,)))
        self.whole.inspect()
        step = self._columns()
        parts = [self._product(X[:, j : j + step]) for j in range(0, X.shape[1], step)]
        return torch.cat(parts, dim=1) if parts else X.clone()

    _apply_adjoint = _apply

    def _product(self, X: Tensor) -> Tensor:
        """The rows of this process of A @ X, whose pieces are made whole to multiply them."""
        layout, space, rows = self.whole.layout, self.space, self.space.rows
        with self.whole.differentiating():
            Y = self.whole.summed(
                space.gather(X.clone()),
                layout,
                layout,
                lambda block: self.communicator.reduce_scatter(block, space.row_ranges),
            )
        for name, decay in self.whole.weight_decay.items():
            place = layout.partition[name]
            here = slice(
                max(place.start, rows.start) - rows.start,
                max(min(place.stop, rows.stop) - rows.start, 0),
            )
            Y[here] += decay * X[here]
        return Y

    def _columns(self) -> int:
        """Vectors that are whole at a time, as many in every process."""
        if self._block_size is None:
            self._block_size = columns_at_once(self.communicator, self.space.size, self.dtype)
        return self._block_size

    def _sensible(self, counts: list[int]) -> tuple[list[int], int | None]:
        n, size = self.whole.layout.size, self.communicator.size
        if len(counts) != size or sum(counts) != n or min(counts) < 0:
            raise ValueError(
                f"rows must be {size} numbers that add up to {n}, one for each process: got "
                f"{counts}."
            )
        if self._block_size is not None and self._block_size < 1:
            raise ValueError(f"block_size must be positive: got {self._block_size}.")
        return counts, self._block_size

    def __repr__(self) -> str:
        rows = self.space.rows
        return f"<rows {rows.start} to {rows.stop} of {self.whole!r}>"
