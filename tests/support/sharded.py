"""The test double for vectors cut into pieces: one thread plays one process.

Every thread runs the same code on its own rows. The only things they share are the sums
of ``ShardedSpace.all_reduce``, small answers, and the gathering of whole vectors inside the
operator's product, which is the operator's own business.
"""

import itertools
import threading

import numpy as np

from matfree import FunctionOperator, VectorSpace
from matfree.arrays import to_host


class Group:
    """As many threads as there are pieces, and a place where they meet."""

    def __init__(self, cuts):
        edges = [0, *np.cumsum(cuts).tolist()]
        self.ranges = [range(a, b) for a, b in itertools.pairwise(edges)]
        self.size = edges[-1]
        self.barrier = threading.Barrier(len(self.ranges), timeout=60)
        self.slots = [None] * len(self.ranges)

    def gather(self, rank, piece):
        """Everybody's pieces, in rank order."""
        self.slots[rank] = piece
        self.barrier.wait()
        pieces = list(self.slots)
        self.barrier.wait()
        return pieces


class Member:
    """One thread among the others."""

    def __init__(self, group, rank):
        self.group, self.rank = group, rank

    def all_gather_object(self, local):
        """Everybody's answers; an error in one thread ends all, by ``run_sharded``."""
        return self.group.gather(self.rank, local())


class ShardedSpace(VectorSpace):
    """One thread's rows; sums go over all threads, in the same order for each."""

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
        pieces = self.group.gather(self.rank, partial)
        total = pieces[0]
        for piece in pieces[1:]:
            total = total + piece
        return total


def sharded_operator(group, columns, rank, backend, A):
    """A @ X for a NumPy matrix A that every thread has, on vectors cut into pieces."""
    dtype = backend.asarray(A[:1, :1]).dtype
    space = ShardedSpace(group, rank, backend, dtype)
    domain = space if columns is group else ShardedSpace(columns, rank, backend, dtype)

    def product(M, source, target):
        rows = target.ranges[rank]

        def matmat(X):
            whole = np.concatenate([to_host(piece) for piece in source.gather(rank, X)])
            return backend.asarray(M[rows.start : rows.stop] @ whole)

        return matmat

    matmat, rmatmat = product(A, columns, group), product(A.conj().T, group, columns)
    return FunctionOperator(
        lambda x: matmat(x[:, None])[:, 0],
        space=space,
        domain=domain,
        matmat=matmat,
        rmatmat=rmatmat,
        name="sharded",
    )


def run_sharded(cuts, backend, A, function, column_cuts=None):
    """``function(operator)`` on every thread; their results in rank order.

    A rectangular A has its domain cut by ``column_cuts``.
    """
    group = Group(cuts)
    columns = group if column_cuts is None else Group(column_cuts)
    results, errors = [None] * len(cuts), []

    def work(rank):
        try:
            results[rank] = function(sharded_operator(group, columns, rank, backend, A))
        except BaseException as error:  # whatever it is, the others must not wait for it
            errors.append(error)
            group.barrier.abort()
            columns.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(cuts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        first = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        raise (first or errors)[0]
    return results
