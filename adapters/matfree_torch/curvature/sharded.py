"""Curvature operators on vectors whose rows are sharded over processes.

A matvec assembles whole vectors by an all-gather, applies the local data to them, and returns
the local rows of the result by a reduce-scatter. Whatever an algorithm keeps between matvecs,
such as Lanczos vectors, is sharded.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from matfree import Operator, OperatorError
from matfree.protocol import Array
from matfree_torch.autograd.graph_memory import columns_at_once
from matfree_torch.curvature.operator import CurvatureOperator
from matfree_torch.distributed.checksums import Checksum
from matfree_torch.distributed.redistribution import even_rows
from matfree_torch.distributed.space import ShardedSpace
from matfree_torch.vectors.layout import Layout

_SAME_ARGUMENTS = "pass the same arguments in all of them"


class ShardableCurvature(CurvatureOperator):
    """A curvature operator whose vectors can be sharded over processes.

    A subclass implements the sum over batches. Weight decay is added to it separately, because it
    acts on the local rows of a vector and needs no communication.
    """

    weight_decay: dict[str, float]
    """lambda by the name of the tensor, without the tensors for which it is zero."""

    @abstractmethod
    def apply_without_decay(
        self,
        X: Tensor,
        rows: Layout,
        columns: Layout,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """A[rows, columns] @ X, summed over all batches of all processes, without weight decay.

        Parameters
        ----------
        X : (columns.local_size, k)
        rows, columns : Layout
        reduce : function, optional
            The sum over processes of a local block, an all-reduce by default. With it, X must
            be known to be the same in all processes.
        """

    def sharded(
        self, rows: Sequence[int] | None = None, *, block_size: int | None = None
    ) -> ShardedCurvature:
        """The same operator on vectors whose rows are sharded over the processes.

        Lanczos vectors, probes and eigenvectors then take each process only the memory of its own
        rows. Whole vectors exist only within a matvec, and only ``block_size`` of them at a time.

        Parameters
        ----------
        rows : sequence of int, optional
            The number of rows of each process, by rank; by default the rows are distributed
            evenly.
        block_size : int, optional
            The number of vectors that are assembled at a time; by default as many as fit into a
            sixteenth of the free memory.

        Returns
        -------
        ShardedCurvature
            Its ``space`` has the ``rows`` of this process. All processes make the same calls.

        Raises
        ------
        ValueError
            The operator has no process_group, the rows do not add up to n, or block_size is not
            positive.

        Cost
        ----
        No matvec. Each matvec with the result then consists of an all-gather and a reduce-scatter,
        which together transfer as much as the all-reduce of the replicated operator.

        Examples
        --------
        >>> import torch
        >>> from matfree_torch import hessian
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)
        >>> hessian(torch.nn.Linear(1, 1), torch.nn.MSELoss(), data).sharded()
        Traceback (most recent call last):
        ...
        ValueError: sharded vectors need several processes; create the operator with process_group=.
        """
        if self.layout.redistribution is not None:
            raise ValueError(
                "the vectors of this operator are sharded already, because the parameters of the "
                "model are sharded; use the operator itself."
            )
        return ShardedCurvature(self, rows, block_size)


@final
class ShardedCurvature(Operator):
    """A curvature operator on sharded vectors, returned by the method ``sharded``.

    Parameters
    ----------
    whole : operator returned by :func:`hessian`, :func:`ggn` or :func:`fisher`
        The same operator on whole vectors, over data that is distributed over processes.
    rows : sequence of int, or None
        The number of rows of each process, by rank; None distributes them evenly.
    block_size : int or None
        The number of vectors that are assembled at a time; None for as many as fit into a
        sixteenth of the free memory.

    Examples
    --------
    All processes run the same lines. This is the output with a single process:

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
        self, whole: ShardableCurvature, rows: Sequence[int] | None, block_size: int | None
    ) -> None:
        communicator = whole.objective.communicator
        if communicator is None:
            raise ValueError(
                "sharded vectors need several processes; create the operator with process_group=."
            )
        self.whole, self.communicator, self._block_size = whole, communicator, block_size
        counts = list(rows or map(len, even_rows(whole.layout.size, communicator.size)))
        # Invalid arguments in one process raise an error in all of them.
        arguments = communicator.all_gather_object(lambda: self._checked_arguments(counts))
        others = [rank for rank, given in enumerate(arguments) if given != arguments[0]]
        if others:
            raise OperatorError(
                f"process {others[0]} has other rows or another block_size than process 0: "
                f"{arguments[others[0]]} and {arguments[0]}; pass the same in all processes."
            )
        super().__init__(ShardedSpace(communicator, counts, whole.dtype))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the whole vector."""
        return self.whole.names

    @property
    def partition(self) -> dict[str, slice]:
        """The slice of each tensor in the whole vector."""
        return self.whole.partition

    @property
    def positive_semidefinite(self) -> bool:
        """Whether x^T A x >= 0 for every x, by construction."""
        return self.whole.positive_semidefinite

    @property
    def noise(self) -> float:
        """The measured relative rounding error of matvecs, as that of the whole operator."""
        return self.whole.noise

    def gather(self, X: Tensor) -> Tensor:
        """All-gather a vector (rows,) or a block (rows, k): the whole of it, in every process."""
        return self.space.gather(X)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Tensors by name as a vector, of which this process gets its own rows, (rows,)."""
        rows = self.space.rows
        return self.whole.flatten(tensors)[rows.start : rows.stop].clone()

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector, (rows,) in each process, as whole tensors by name.

        All processes must call it, because it is an all-gather.
        """
        return self.whole.unflatten(self.gather(vector))

    def _apply(self, X: Array) -> Array:
        # With different numbers of vectors, some processes would wait in a collective forever.
        count = float(X.shape[1])
        self.communicator.require_same(Checksum("numbers of vectors", _SAME_ARGUMENTS, (count,)))
        self.whole.inspect()
        step = self._columns_per_pass()
        blocks = [self._apply_assembled(X[:, j : j + step]) for j in range(0, X.shape[1], step)]
        return torch.cat(blocks, dim=1) if blocks else X.clone()

    _apply_adjoint = _apply

    def _apply_assembled(self, X: Tensor) -> Tensor:
        """The local rows of A @ X, for a block that is small enough to be assembled."""
        layout, space, rows = self.whole.layout, self.space, self.space.rows
        with self.whole.differentiating():
            Y = self.whole.apply_without_decay(
                space.gather(X.clone()),
                layout,
                layout,
                lambda block: self.communicator.reduce_scatter(block, space.row_ranges),
            )
        for name, decay in self.whole.weight_decay.items():
            tensor = layout.partition[name]
            local = slice(
                max(tensor.start, rows.start) - rows.start,
                max(min(tensor.stop, rows.stop) - rows.start, 0),
            )
            Y[local] += decay * X[local]
        return Y

    def _columns_per_pass(self) -> int:
        """The number of vectors that are assembled at a time, the same in every process."""
        if self._block_size is None:
            self._block_size = columns_at_once(self.communicator, self.space.size, self.dtype)
        return self._block_size

    def _checked_arguments(self, counts: list[int]) -> tuple[list[int], int | None]:
        n, size = self.whole.layout.size, self.communicator.size
        if len(counts) != size or sum(counts) != n or min(counts) < 0:
            raise ValueError(
                f"rows must be {size} numbers of rows, one for each process, that add up to {n}: "
                f"got {counts}."
            )
        if self._block_size is not None and self._block_size < 1:
            raise ValueError(f"block_size must be positive: got {self._block_size}.")
        return counts, self._block_size

    def __repr__(self) -> str:
        rows = self.space.rows
        return f"<rows {rows.start} to {rows.stop} of {self.whole!r}>"
