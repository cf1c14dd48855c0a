"""The space of row-sharded vectors, whose rows are distributed over the processes of a group."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import final

import array_api_compat
import torch
from torch import Tensor

from matfree import VectorSpace
from matfree.protocol import Array
from matfree_torch.distributed.collectives import Communicator


@final
class ShardedSpace(VectorSpace):
    """The space of row-sharded vectors.

    Each process of a group holds a contiguous range of rows.

    Parameters
    ----------
    communicator : Communicator
        The processes that hold the rows.
    counts : sequence of int
        The number of rows of each process, by rank; a process may hold none.
    dtype : torch.dtype

    Examples
    --------
    Operators create it. In this example there is one process, which holds all rows:

    >>> import torch, torch.distributed as dist
    >>> from matfree_torch import hessian
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> data = torch.eye(2), torch.zeros(2, 1)
    >>> H = hessian(torch.nn.Linear(2, 1), torch.nn.MSELoss(), data, process_group=dist.group.WORLD)
    >>> space = H.sharded().space
    >>> space.size, space.rows, space.row_ranges
    (3, range(0, 3), (range(0, 3),))
    >>> space.gather(space.probes(1, seed=0)).shape
    torch.Size([3, 1])
    >>> dist.destroy_process_group()
    """

    def __init__(
        self, communicator: Communicator, counts: Sequence[int], dtype: torch.dtype
    ) -> None:
        offsets = [0, *itertools.accumulate(counts)]
        self.row_ranges = tuple(range(*pair) for pair in itertools.pairwise(offsets))
        """The rows of each process, by rank."""
        super().__init__(
            array_api_compat.array_namespace(torch.empty(0)),
            offsets[-1],
            dtype,
            communicator.device,
            rows=self.row_ranges[communicator.rank],
            peers=communicator,
        )
        self.communicator = communicator

    def all_reduce(self, partial: Array) -> Array:
        """The sum over all processes, bitwise the same in each of them."""
        # A copy, because the collective works in place and callers reuse ``partial``.
        return self.communicator.all_reduce(partial.clone(memory_format=torch.contiguous_format))

    def gather(self, X: Tensor) -> Tensor:
        """Gather a vector (num_rows,) or a block (num_rows, k) on all processes; a collective call.

        Returns
        -------
        (n,) or (n, k), the same in every process.
        """
        return self.communicator.all_gather(X, self.row_ranges)
