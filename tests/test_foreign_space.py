"""Vector spaces written by users: what derives from VectorSpace runs everything, and only that."""

import threading
import typing

import numpy as np
import pytest
from support import algorithm_calls
from support.backends import assert_close
from support.foreign_space import PipeSpace, run_in_processes
from support.matrices import haar, with_spectrum

import matfree as mf
from matfree.algorithms.spectra.density_run import DensityMethod
from matfree.algorithms.traces.diagonal import DiagonalMethod
from matfree.algorithms.traces.trace import TraceMethod

N = 40
WORLD = 3
MATRICES = {
    "symmetric": with_spectrum(np.geomspace(0.05, 9.0, N), seed=3),
    "rectangle": haar(N, 1)[:, :25] * np.geomspace(9.0, 0.5, 25) @ haar(25, 2),
}
CASES = {
    **{name: ("symmetric", call) for name, call in algorithm_calls.SYMMETRIC.items()},
    **{name: ("rectangle", call) for name, call in algorithm_calls.RECTANGULAR.items()},
}
NOT_ALGORITHMS = {"aslinearoperator", "load", "space_like"}


@pytest.fixture(scope="module")
def results():
    """The result of every case on every rank, from processes that are started once."""
    return run_in_processes(WORLD, MATRICES, CASES)


def test_the_calls_cover_every_public_algorithm_and_method():
    public = {name for name in mf.__all__ if name[0].islower()} - NOT_ALGORITHMS
    assert public == {name.split()[0] for name in CASES}
    for function, methods in {
        "trace": TraceMethod,
        "diagonal": DiagonalMethod,
        "spectral_density": DensityMethod,
    }.items():
        assert {f"{function} {method}" for method in typing.get_args(methods)} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_processes_that_share_vectors_get_the_numbers_of_the_whole_space(results, name):
    matrix, call = CASES[name]
    for result in results[name]:
        assert not isinstance(result, str), result
    whole = _fields(call(MATRICES[matrix]))
    gathered = _gathered([_fields(result) for result in results[name]])
    assert gathered.keys() == whole.keys()
    for field, expected in whole.items():
        # Rounding in sums over shards is amplified by the Lanczos recurrence and the square
        # roots of Gram matrices: half of the digits are asserted for basis vectors.
        dtype = np.float32 if field in ("vectors", "left", "right", "bases") else np.float64
        assert_close(gathered[field], expected, dtype, scale=max(1.0, np.abs(expected).max()))


def _fields(result):
    """The numbers of a result by name; vectors without their signs, which are arbitrary."""
    if isinstance(result, dict):
        nested = {name: _fields(part) for name, part in result.items()}
        return {f"{name} {f}": x for name, part in nested.items() for f, x in part.items()}
    found = {"num_matvecs": np.asarray(result.num_matvecs)}
    if isinstance(result, mf.OperatorReport):
        return {**found, "ok": np.asarray([result.ok, result.hermitian], dtype=float)}
    if isinstance(result, mf.Solution):
        return {**found, "vectors": np.abs(result.values), "values": result.residuals}
    if isinstance(result, mf.BoundedNumber):  # rounding changes the iterations of inner solves
        return {"value": np.round(np.log10(result.value), 6)}
    if isinstance(result, mf.FunctionValues):
        rows = np.moveaxis(result.values, np.ndim(result.t), 0)
        return {**found, "vectors": np.abs(rows), "error": np.asarray(result.error)}
    if isinstance(result, mf.SpectralDensity):
        return {**found, "moment": np.asarray([result.moment(p).value for p in (1, 2, 3)])}
    for field in ("value", "stderr", "values", "alphas", "betas"):
        if hasattr(result, field):
            found[field] = np.asarray(getattr(result, field))
    for field in ("vectors", "left", "right", "bases"):
        if getattr(result, field, None) is not None:
            found[field] = np.abs(np.asarray(getattr(result, field)))
    return found


def _gathered(shards):
    """Numbers that all ranks share, and rows in rank order."""
    first, found = shards[0], {}
    for field in first:
        parts = [shard[field] for shard in shards]
        name = field.split()[-1]
        axis = {"vectors": 0, "left": 0, "right": 0, "bases": 2}.get(name)  # start, step, row
        if axis is None and name in ("value", "stderr") and first[field].ndim == 1:
            axis = 0
        if axis is None:
            for part in parts:
                assert np.array_equal(part, first[field]), f"{field} differs between ranks"
            found[field] = first[field]
        else:
            found[field] = np.concatenate(parts, axis=axis)
    return found


class Undeclared:
    """The members of a vector space, without deriving from ``matfree.VectorSpace``."""

    def __init__(self, n):
        self._space = mf.space_like(np.zeros(1), n)

    def __getattr__(self, name):
        return getattr(self._space, name)


class Declaring:
    """An operator, 2 I, that declares the spaces that it is given."""

    dtype = np.float64

    def __init__(self, shape, space, domain=None):
        self.shape, self.space, self.domain = shape, space, domain

    def matvec(self, x):
        return 2 * x


class DerivedOperator(mf.Operator):
    def _apply(self, X):
        return 2 * X


ENTRIES = {
    "a declared space": lambda space: mf.trace(Declaring((4, 4), space), num_probes=2, seed=0),
    "a declared domain": lambda space: mf.svds(
        Declaring((4, 3), mf.space_like(np.zeros(1), 4), space), 1, seed=0
    ),
    "aslinearoperator": lambda space: mf.aslinearoperator(Declaring((4, 4), space)),
    "FunctionOperator(space=)": lambda space: mf.FunctionOperator(lambda x: x, space=space),
    "FunctionOperator(domain=)": lambda space: mf.FunctionOperator(
        lambda x: x, space=mf.space_like(np.zeros(1), 4), domain=space
    ),
    "Operator.__init__": DerivedOperator,
    "Operator.__init__ with a domain": lambda space: DerivedOperator(
        mf.space_like(np.zeros(1), 4), space
    ),
}


@pytest.mark.parametrize("enter", ENTRIES.values(), ids=ENTRIES.keys())
@pytest.mark.parametrize("space", [Undeclared(4), 4, mf.VectorSpace], ids=["duck", "int", "class"])
def test_a_space_that_does_not_derive_from_vector_space_is_refused_at_every_entry(enter, space):
    with pytest.raises(TypeError, match=r"matfree\.VectorSpace.*all_reduce"):
        enter(space)


def test_a_rectangular_operator_that_declares_no_domain_is_refused_by_name():
    A = Declaring((4, 3), mf.space_like(np.zeros(1), 4))
    with pytest.raises(TypeError, match=r"the domain of Declaring must derive"):
        mf.aslinearoperator(A)


def test_a_space_without_all_reduce_cannot_be_made():
    class Forgetful(mf.VectorSpace):
        pass

    with pytest.raises(TypeError, match="all_reduce"):
        Forgetful(np, 4, np.dtype(float), "cpu")


def test_a_sharded_space_without_peers_is_refused_when_processes_must_agree():
    A = mf.FunctionOperator(lambda x: x, space=PipeSpace(range(2), 4, None))
    with pytest.raises(TypeError, match=r"holds rows 0 to 2 of 4 and has no peers.*peers="):
        mf.trace(A, num_probes=2, seed=0)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 3)])
def test_declared_spaces_of_the_wrong_size_are_refused(sizes):
    spaces = [mf.space_like(np.zeros(1), size) for size in sizes]
    with pytest.raises(mf.OperatorError, match=rf"spaces have sizes \({sizes[0]}, {sizes[1]}\)"):
        mf.aslinearoperator(Declaring((5, 4), *spaces))


class Meeting:
    """Two threads with the former names of the contract: ``add_up`` and ``exchange``."""

    def __init__(self, rank, barrier, slots):
        self.rank, self.barrier, self.slots = rank, barrier, slots

    def exchange(self, local):
        self.slots[self.rank] = local()
        self.barrier.wait()
        answers = list(self.slots)
        self.barrier.wait()
        return answers


class FormerSpace(PipeSpace):
    def add_up(self, partial):
        return sum(self.peers.exchange(lambda: partial))


class FormerBase(mf.RowSpace):
    """A direct subclass that has only the former name."""

    def add_up(self, partial):
        return sum(self.peers.exchange(lambda: partial))


@pytest.mark.parametrize("space_type", [FormerBase, FormerSpace])
def test_the_former_names_add_up_and_exchange_still_work(space_type):
    barrier, slots, found = threading.Barrier(2, timeout=60), [None, None], [None, None]
    whole = mf.space_like(np.zeros(1), 6)
    values = np.arange(1.0, 7.0)

    def work(rank):
        rows = range(2) if rank == 0 else range(2, 6)
        peers = Meeting(rank, barrier, slots)
        if space_type is FormerSpace:
            space = FormerSpace(rows, 6, peers)
        else:
            space = FormerBase(whole.xp, 6, whole.dtype, "cpu", rows=rows, peers=peers)
        local = values[rows.start : rows.stop, None]
        A = mf.FunctionOperator(lambda x: local[:, 0] * x, space=space, matmat=lambda X: local * X)
        found[rank] = mf.eigsh(A, 1, seed=0).values[0], space.exchange(lambda: rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer[1] for answer in found] == [[0, 1], [0, 1]]
    assert_close([answer[0] for answer in found], [6.0, 6.0])
