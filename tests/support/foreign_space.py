"""A vector space written by a user: processes that hold rows of vectors and talk through pipes.

``PipeSpace`` implements ``all_reduce`` and nothing else. It shares no code with the test double of
``support.sharded``, whose threads could hide what real processes do not share.
"""

import itertools
import multiprocessing
import traceback

import array_api_compat
import numpy as np

import matfree as mf


class PipePeers:
    """The processes of a star: rank 0 has a pipe to every other rank.

    Parameters
    ----------
    rank : int
    pipes : for rank 0, one connection per other rank in rank order; for others, one to rank 0
    """

    def __init__(self, rank, pipes):
        self.rank, self.pipes = rank, pipes

    def all_gather_object(self, local):
        try:
            answer = local()
        except Exception as error:
            answer = error
        if self.rank > 0:
            self.pipes[0].send(answer)
            answers = self.pipes[0].recv()
        else:
            answers = [answer, *(pipe.recv() for pipe in self.pipes)]
            for pipe in self.pipes:
                pipe.send(answers)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


class PipeSpace(mf.VectorSpace):
    """Vectors of NumPy float64 numbers, of which this process holds some rows."""

    def __init__(self, rows, size, peers):
        xp = array_api_compat.array_namespace(np.zeros(0))
        super().__init__(xp, size, np.dtype(float), "cpu", rows=rows, peers=peers)

    def all_reduce(self, partial):
        return sum(self.peers.all_gather_object(lambda: partial))


class RowsOfMatrix:
    """An operator as a user writes one: it declares its spaces and derives from nothing.

    Parameters
    ----------
    A : (m, n) NumPy array, the same on every rank
    row_ranges, column_ranges : the rows of A @ x and of x that each rank holds, in rank order
    peers : PipePeers
    """

    dtype = np.float64

    def __init__(self, A, row_ranges, column_ranges, peers):
        self.shape, self.peers = A.shape, peers
        own_rows, own_columns = row_ranges[peers.rank], column_ranges[peers.rank]
        self.space = PipeSpace(own_rows, A.shape[0], peers)
        self.domain = PipeSpace(own_columns, A.shape[1], peers)
        self.forward, self.backward = A[own_rows, :], A.T[own_columns, :]

    def matmat(self, X):
        return self.forward @ np.concatenate(self.peers.all_gather_object(lambda: X))

    def rmatmat(self, Y):
        return self.backward @ np.concatenate(self.peers.all_gather_object(lambda: Y))

    def matvec(self, x):
        return self.matmat(x[:, None])[:, 0]

    def rmatvec(self, y):
        return self.rmatmat(y[:, None])[:, 0]


def even_ranges(size, world):
    """``size`` rows split over ``world`` ranks, as evenly as possible."""
    edges = np.linspace(0, size, world + 1).astype(int).tolist()
    return [range(*pair) for pair in itertools.pairwise(edges)]


def run_in_processes(world, matrices, cases):
    """``cases[name](operator)`` for every name, in ``world`` processes that share each operator.

    Parameters
    ----------
    world : int
    matrices : dict of names to NumPy matrices
    cases : dict of names to (name of a matrix, function); the functions can be pickled

    Returns
    -------
    dict of names to lists, in rank order, of results or of the text of an exception
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of BLAS
    star = [context.Pipe() for _ in range(world - 1)]
    answers = [context.Pipe(duplex=False) for _ in range(world)]
    processes = []
    for rank in range(world):
        pipes = [ends[0] for ends in star] if rank == 0 else [star[rank - 1][1]]
        arguments = (rank, world, pipes, answers[rank][1], matrices, cases)
        processes.append(context.Process(target=_work, args=arguments, daemon=True))
        processes[-1].start()
    try:
        found = []
        for receiver, _ in answers:
            assert receiver.poll(300), "a process did not answer"
            found.append(receiver.recv())
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return {name: [of_rank[name] for of_rank in found] for name in cases}


def _work(rank, world, pipes, answers, matrices, cases):
    peers, found = PipePeers(rank, pipes), {}
    for name, (matrix, function) in cases.items():
        A = matrices[matrix]
        ranges = [even_ranges(size, world) for size in A.shape]
        try:
            found[name] = function(RowsOfMatrix(A, *ranges, peers))
        except Exception:
            found[name] = traceback.format_exc()
    answers.send(found)
