"""The vector space whose rows are sharded over the processes of a group."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import array_api_compat
import torch
from torch import Tensor

from matfree import VectorSpace
from matfree.protocol import Array
from matfree_torch.distributed.collectives import Communicator

if TYPE_CHECKING:
    pass


@final
class ShardedSpace(VectorSpace):
    """Vectors of which every process of a group holds some rows.

    Parameters
    ----------
    processes : Processes
    counts : sequence of int
        The rows of each process, by rank; some may have none.
    dtype : torch.dtype

    Examples
    --------
    A space is made by what has it; here of one process, which holds all rows:

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
        edges = [0, *itertools.accumulate(counts)]
        self.row_ranges = tuple(range(*pair) for pair in itertools.pairwise(edges))
        """The rows of each process, by rank."""
        super().__init__(
            array_api_compat.array_namespace(torch.empty(0)),
            edges[-1],
            dtype,
            communicator.device,
            rows=self.row_ranges[communicator.rank],
            peers=communicator,
        )
        self.communicator = communicator

    def all_reduce(self, partial: Array) -> Array:
        """The sum over all processes, the same to the bit in each."""
        return self.communicator.all_reduce(partial.clone(memory_format=torch.contiguous_format))

    def gather(self, X: Tensor) -> Tensor:
        """Vectors (rows,) or a block (rows, k), whole in every process."""
        return self.communicator.all_gather(X, self.row_ranges)
