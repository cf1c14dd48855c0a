"""CUDA kernels for CSR matrices, from the same source and launches on the host and on a device.

The oracle is a dense matrix, multiplied by NumPy in double precision or diagonalized.
"""

import numpy as np
import pytest
import scipy.sparse as sp
from support.backends import assert_close
from support.kernels import Device, Host, HostKernels, compile_with_nvrtc
from support.matrices import laplacian_2d
from support.sparse import HARD, in_disorder, sparse_hermitian

import matfree as mf
from matfree.arrays import to_host
from matfree_cupy import csr

KINDS = [
    (dtype, index_type)
    for dtype in (np.float32, np.float64, np.complex64, np.complex128)
    for index_type in (np.int32, np.int64)
]
by_kind = pytest.mark.parametrize(("dtype", "index_type"), KINDS, ids=lambda t: t.__name__)
ROWS = 700  # two chunks and the beginning of a third
STEP = ["first_pass", "sum_chunks", "second_pass", "sum_chunks_to_norms"]


@pytest.fixture(scope="module")
def host_kernels(tmp_path_factory):
    return HostKernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def place(request, monkeypatch, host_kernels):
    chosen = Host(host_kernels, monkeypatch) if request.param == "host" else Device(monkeypatch)
    yield chosen
    chosen.finish()


def block(n, k, dtype, seed=0):
    X = np.random.default_rng(seed).standard_normal((2, n, k))
    return (X[0] + 1j * X[1]).astype(dtype) if np.dtype(dtype).kind == "c" else X[0].astype(dtype)


def widened(x):
    return x.astype(np.result_type(x.dtype, np.float64))


@by_kind
@pytest.mark.parametrize("k", [4, 5, 20, 33, 64, 65, 130])
def test_a_step_is_the_formula_of_the_contract(place, dtype, index_type, k):
    A, rng = sparse_hermitian(ROWS, dtype), np.random.default_rng(1)
    V, previous = block(ROWS, k, dtype), block(ROWS + 2, k, dtype, seed=1)
    beta, scale = rng.random(k), 0.5 + rng.random(k)
    U = widened(V) * scale
    W = widened(A) @ U - previous[1:-1] * beta
    alpha = np.sum(U.conj() * W, axis=0)
    R = W - U * alpha
    guarded = place.asarray(previous)
    operator = place.operator(A, index_type)
    got_R, got_alpha, got_norms = map(
        to_host,
        operator.lanczos_step(
            place.asarray(V), guarded[1:-1], place.asarray(beta), place.asarray(scale)
        ),
    )
    assert got_R.dtype == dtype
    assert got_alpha.dtype == W.dtype
    assert got_norms.dtype == np.float64
    assert_close(got_R, R, dtype)
    assert_close(got_alpha, alpha, dtype)
    assert_close(got_norms, np.linalg.norm(R, axis=0), dtype)
    written = to_host(guarded)
    assert np.array_equal(written[[0, -1]], previous[[0, -1]])
    assert np.array_equal(written[1:-1], got_R)
    assert place.launched == STEP


@by_kind
def test_matmat_is_that_of_the_dense_matrix(place, dtype, index_type):
    A, widths = sparse_hermitian(300, dtype)[:, :97], [*range(4, 34), 100]
    operator = place.operator(A, index_type)
    for k in widths:
        X, Y = block(97, k, dtype), block(300, k, dtype)
        got = operator @ place.asarray(X)
        assert got.flags.c_contiguous
        assert got.dtype == dtype
        assert_close(got, widened(A) @ X, dtype)
        assert_close(operator.H @ place.asarray(Y), widened(A).conj().T @ Y, dtype)
    assert place.launched == ["matmat"] * 2 * len(widths)


def test_other_blocks_are_multiplied_by_the_library(place):
    A = sparse_hermitian(300)
    operator = place.operator(A)
    for X in (block(300, 3, float), np.asfortranarray(block(300, 9, float))):
        there = place.asarray(X)
        got = operator @ there
        assert got.flags.c_contiguous
        assert_close(got, A @ X)
        numbers = place.asarray(np.ones(X.shape[1]))
        assert operator.quadratic_forms(there) is None
        assert operator.lanczos_step(there, there, numbers, numbers) is None
    assert place.launched == []


@by_kind
@pytest.mark.parametrize("k", [4, 6, 33])
def test_quadratic_forms_are_those_of_the_dense_matrix(place, dtype, index_type, k):
    A = sparse_hermitian(ROWS, dtype)
    A[3, 5] += 1  # no symmetry is used
    X = block(ROWS, k, dtype)
    got = to_host(place.operator(A, index_type).quadratic_forms(place.asarray(X)))
    expected = np.sum(X.conj() * (widened(A) @ X), axis=0)
    assert got.dtype == expected.dtype
    assert_close(got, expected, dtype, scale=np.abs(A).sum())
    assert place.launched == ["quadratic_forms", "sum_chunks"]


def test_duplicate_and_unsorted_entries_are_summed(place):
    A, X = sparse_hermitian(300), block(300, 5, float)
    operator, there = place.operator(in_disorder(A)), place.asarray(X)
    assert_close(operator @ there, A @ X)
    narrow = there[:, :2]  # CuPy's product sums duplicate entries in place
    assert_close(operator @ narrow, A @ X[:, :2])
    assert_close(operator @ there, A @ X)
    assert_close(operator.quadratic_forms(there), np.sum(X * (A @ X), axis=0))


def test_entries_of_a_block_beyond_32_bits_are_found(host_kernels, monkeypatch, tmp_path):
    place, k = Host(host_kernels, monkeypatch), 16
    n = 2**32 // k + 5
    X = np.memmap(tmp_path / "block", np.float32, "w+", shape=(n, k))  # a sparse file
    X[-1], X[4] = np.arange(1, k + 1), 100
    A = sp.csr_array((np.float32([1, 2, 4]), [n - 1, 4, n - 1], [0, 1, 2, 3]), shape=(3, n))
    got = place.operator(A) @ X
    expected = np.outer([1, 0, 4], np.arange(1, k + 1)) + np.outer([0, 2, 0], np.full(k, 100))
    assert np.array_equal(got, expected)
    place.finish()


@pytest.mark.parametrize("name", HARD)
def test_quadratures_of_hard_matrices_are_those_of_their_eigenvectors(place, name):
    A = HARD[name]
    n, size = len(A), np.abs(A).max() or 1.0
    operator = place.operator(A)
    W = operator.space.probes(5, seed=3)
    T = mf.lanczos(operator, W, min(n, 30), reorthogonalize="none")
    values, vectors = np.linalg.eigh(A)
    expected = (vectors.T @ to_host(W)).T ** 2 @ np.cos(values / size)
    got = [
        T.start_norms[p] ** 2 * np.sum(weights * np.cos(nodes / size))
        for p, (nodes, weights) in enumerate(map(T.quadrature, range(5)))
    ]
    assert_close(
        got, expected, scale=1e3 * n
    )  # spurious copies of eigenvalues change the last digits
    if name in ("identity", "zero"):
        assert [len(alpha) for alpha in T.alphas] == [1] * 5
    assert set(place.launched) <= {"matmat", *STEP}


def test_a_log_determinant_uses_fused_steps(place):
    A = sp.csr_array(laplacian_2d(12) + 0.1 * sp.eye_array(144))
    options = {"num_probes": 6, "num_steps": 20, "seed": 0, "reorthogonalize": "none"}
    there, here = mf.logdet(place.operator(A), **options), mf.logdet(A, **options)
    assert_close(there.samples, here.samples)
    assert there.num_matvecs == here.num_matvecs == 120
    # The second step checks that the operator is Hermitian, by array operations.
    assert place.launched == [*STEP, "matmat", *STEP * 18]


def test_a_trace_uses_quadratic_forms_unless_the_products_give_its_error(place):
    A = sparse_hermitian(300, np.complex128)
    options = {"num_probes": 11, "block_size": 4, "kind": "z4", "seed": 4}
    there = mf.trace(place.operator(A), **options)
    assert_close(there.samples, mf.trace(A, **options).samples, scale=np.abs(A).sum())
    assert place.launched == ["matmat"] * 2  # the last block is narrow
    A[3, 5] += 1
    place.launched.clear()
    there = mf.trace(place.operator(A), **options)
    assert_close(there.samples, mf.trace(A, **options).samples, scale=np.abs(A).sum())
    assert place.launched == ["matmat", "quadratic_forms", "sum_chunks"]


def test_nan_in_the_matrix_is_named(place):
    A = sp.csr_array(laplacian_2d(12))
    A.data[40] = np.nan
    with pytest.raises(mf.NonFiniteError, match="contains NaN or infinity"):
        mf.logdet(place.operator(A), num_probes=6, num_steps=20, seed=0)


def test_an_unsymmetric_matrix_is_refused(place):
    A = laplacian_2d(12) + sp.eye_array(144, k=1)
    with pytest.raises(mf.NotHermitianError):
        mf.logdet(place.operator(A), num_probes=6, num_steps=20, seed=0)


def test_sums_are_double_precision(place):
    n, entries = 300_000, 100
    V = np.full((n, 4), n**-0.5, dtype=np.float32)
    numbers = place.asarray(np.ones(4))
    identity = place.operator(sp.eye_array(n, dtype=np.float32).tocsr())
    zero = place.asarray(np.zeros_like(V))
    _, alpha, _ = identity.lanczos_step(place.asarray(V), zero, numbers, numbers)
    exact = n * float(V[0, 0]) ** 2
    assert np.abs(to_host(alpha) / exact - 1).max() < 1e-12  # single precision is off by 1e-5
    row = np.r_[2.0**24, np.ones(entries), -(2.0**24)]  # in single precision 2^24 + 1 is 2^24
    A = np.zeros((4, len(row)), dtype=np.float32)
    A[0] = row
    X = place.asarray(np.ones((len(row), 4), dtype=np.float32))
    assert np.array_equal(to_host(place.operator(A) @ X)[0], np.full(4, entries))


def test_results_are_reproducible(place):
    A = laplacian_2d(80)
    operator = place.operator(A)
    start = operator.space.probes(9, seed=0)
    runs = [mf.lanczos(operator, start, 12, reorthogonalize="none") for _ in range(3)]
    forms = [to_host(operator.quadratic_forms(start)) for _ in range(3)]
    for again in (1, 2):
        assert np.array_equal(runs[again].alphas, runs[0].alphas)
        assert np.array_equal(runs[again].betas, runs[0].betas)
        assert np.array_equal(forms[again], forms[0])


def test_repr_names_the_kernels(place):
    assert "with CUDA kernels" in repr(place.operator(np.eye(5)))


def test_a_matrix_with_a_few_long_rows_is_multiplied_by_the_library(place):
    n = 3000
    A = sp.csr_array(sp.eye_array(n, format="lil"))
    A = sp.csr_array(sp.vstack([sp.csr_array(np.ones((1, n))), A[1:]]))
    operator = place.operator(A)
    assert "kernels" not in repr(operator)
    assert operator.lanczos_step is None
    assert operator.quadratic_forms is None
    X = block(n, 6, float)
    assert_close(operator @ place.asarray(X), A @ X)
    assert place.launched == []


def test_a_matrix_without_rows_can_be_multiplied(host_kernels, monkeypatch):
    place = Host(host_kernels, monkeypatch)
    operator = place.operator(sp.csr_array((0, 7)))
    assert (operator @ place.asarray(np.ones((7, 5)))).shape == (0, 5)


def test_every_entry_point_checks_the_current_device(host_kernels, monkeypatch):
    place = Host(host_kernels, monkeypatch)
    operator, X = place.operator(np.eye(5)), np.ones((5, 4))

    def refuse(device):
        raise mf.OperatorError("elsewhere")

    monkeypatch.setattr(csr, "require_current", refuse)
    numbers = np.ones(4)
    for call in (
        lambda: operator @ X,
        lambda: operator.quadratic_forms(X),
        lambda: operator.lanczos_step(X, X, numbers, numbers),
    ):
        with pytest.raises(mf.OperatorError, match="elsewhere"):
            call()
    assert place.launched == []


@by_kind
def test_cupys_compiler_accepts_the_kernels(dtype, index_type):
    assembly = compile_with_nvrtc(csr.CSR_SOURCE, csr.options(dtype, index_type))
    for name in ("matmat", "quadratic_forms", *STEP):
        assert f".entry {name}(" in assembly


@pytest.mark.gpu
def test_a_step_runs_on_the_current_stream_without_synchronization(monkeypatch):
    """A stream that is being captured refuses every synchronization."""
    place = Device(monkeypatch)
    cupy, operator = place.cupy, place.operator(laplacian_2d(80))
    V, previous = (place.asarray(block(6400, 8, float, seed)) for seed in (0, 1))
    beta, scale = (place.asarray(np.full(8, x)) for x in (0.5, 0.01))
    expected = [x.get() for x in operator.lanczos_step(V, previous.copy(), beta, scale)]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        operator.lanczos_step(V, previous.copy(), beta, scale)  # puts its memory into the pool
        work = previous.copy()
        stream.synchronize()
        stream.begin_capture()
        got = operator.lanczos_step(V, work, beta, scale)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        for x, y in zip(got, expected, strict=True):
            assert np.array_equal(x.get(stream=stream), y)
