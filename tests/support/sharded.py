"""The test double for sharded vectors, in which every thread stands for one process.

All threads run the same code on their own rows. They share the sums of ``all_reduce``, the results
of ``all_gather_object``, and the whole vectors that the matvec of the test operator gathers.
"""

import itertools
import threading

import numpy as np

from matfree import FunctionOperator, VectorSpace
from matfree.arrays import to_host


class Group:
    """A group of threads, one for each shard, with a barrier."""

    def __init__(self, shard_sizes):
        edges = [0, *np.cumsum(shard_sizes).tolist()]
        self.ranges = [range(a, b) for a, b in itertools.pairwise(edges)]
        self.size = edges[-1]
        self.barrier = threading.Barrier(len(self.ranges), timeout=60)
        self.slots = [None] * len(self.ranges)

    def gather(self, rank, local):
        """The arguments of all ranks, in rank order."""
        self.slots[rank] = local
        self.barrier.wait()
        gathered = list(self.slots)
        self.barrier.wait()
        return gathered


class Member:
    """One thread of a group, as the peers of its space."""

    def __init__(self, group, rank):
        self.group, self.rank = group, rank

    def all_gather_object(self, local):
        """The results of all ranks; ``run_sharded`` ends all threads if one of them fails."""
        return self.group.gather(self.rank, local())


class ShardedSpace(VectorSpace):
    """The rows of one thread. Sums are computed in the same order on all threads."""

    def __init__(self, group, rank, backend, dtype):
        self.group = group
        super().__init__(
            backend.xp,
            group.size,
            dtype,
            backend.device,
            rows=group.ranges[rank],
            peers=Member(group, rank),
        )

    def all_reduce(self, partial):
        partials = self.group.gather(self.rank, partial)
        total = partials[0]
        for other in partials[1:]:
            total = total + other
        return total


def sharded_operator(group, columns, rank, backend, A):
    """A NumPy matrix A, which every thread has, as an operator on sharded vectors."""
    dtype = backend.asarray(A[:1, :1]).dtype
    space = ShardedSpace(group, rank, backend, dtype)
    domain = space if columns is group else ShardedSpace(columns, rank, backend, dtype)

    def matmat_of(M, source, target):
        rows = target.ranges[rank]

        def matmat(X):
            whole = np.concatenate([to_host(shard) for shard in source.gather(rank, X)])
            return backend.asarray(M[rows.start : rows.stop] @ whole)

        return matmat

    matmat, rmatmat = matmat_of(A, columns, group), matmat_of(A.conj().T, group, columns)
    return FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0],
        space=space,
        domain=domain,
        matmat=matmat,
        rmatmat=rmatmat,
        name="sharded",
    )


def run_sharded(shard_sizes, backend, A, function, column_shard_sizes=None):
    """Call ``function(operator)`` on every thread and return the results in rank order.

    Parameters
    ----------
    shard_sizes : sequence of int
        The number of rows of each shard.
    column_shard_sizes : sequence of int, optional
        The same for the domain of a rectangular A.
    """
    group = Group(shard_sizes)
    columns = group if column_shard_sizes is None else Group(column_shard_sizes)
    results, errors = [None] * len(shard_sizes), []

    def work(rank):
        try:
            results[rank] = function(sharded_operator(group, columns, rank, backend, A))
        except BaseException as error:  # of any kind, so that the other threads do not wait forever
            errors.append(error)
            group.barrier.abort()
            columns.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shard_sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        first = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (first or errors)[0]
    return results
