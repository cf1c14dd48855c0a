"""Lanczos steps of a CSR matrix by both strategies: compiled loops, and slices of rows.

The oracle is a dense matrix, multiplied by NumPy or diagonalized.
"""

import gc
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
import scipy.sparse as sp
from support.backends import assert_close
from support.matrices import laplacian_2d
from support.sparse import HARD, in_disorder, sparse_hermitian, with_indices

import matfree as mf
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree_scipy import compilation, compiled_products, sliced_products, threads

K = 5
NEVER = 1 << 62
only_compiled = pytest.mark.parametrize("strategy", ["numba"], indirect=True)


@pytest.fixture(autouse=True, params=["numba", "slices"])
def strategy(request, monkeypatch):
    """The strategy of Lanczos steps, which is also used for small matrices."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    else:
        monkeypatch.setattr(sliced_products, "_MIN_HEIGHT", 16)
        monkeypatch.setattr(sliced_products, "_SLICE_ENTRIES", 100)
        monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    use_strategy(request.param, monkeypatch)
    return request.param


def use_strategy(strategy, monkeypatch):
    """Let new operators use one strategy, or none, whatever their size."""
    monkeypatch.setattr(compiled_products, "MIN_ENTRIES", 0 if strategy == "numba" else NEVER)
    monkeypatch.setattr(sliced_products, "MIN_ROWS", 0 if strategy == "slices" else NEVER)


def quadrature_sums(T, f):
    """||v||^2 e_1^T f(T) e_1 for each start vector v."""
    sums = []
    for p in range(len(T.alphas)):
        nodes, weights = T.quadrature(p)
        sums.append(T.start_norms[p] ** 2 * np.sum(weights * f(nodes)))
    return np.array(sums)


@pytest.mark.parametrize(
    ("dtype", "index_type"),
    [
        (np.float32, np.int32),
        (np.float64, np.int32),
        (np.float64, np.int64),
        (np.complex128, np.int32),
    ],
    ids=lambda t: t.__name__,
)
def test_a_step_is_the_formula_of_the_contract(dtype, index_type):
    n, rng = 150, np.random.default_rng(1)
    A = sparse_hermitian(n, dtype)
    V, previous = (
        (rng.standard_normal((n, K)) + 1j * rng.standard_normal((n, K))).astype(dtype)
        if np.issubdtype(dtype, np.complexfloating)
        else rng.standard_normal((n, K)).astype(dtype)
        for _ in range(2)
    )
    beta, scale = rng.random(K), 0.5 + rng.random(K)
    wide = np.result_type(dtype, np.float64)
    U = V.astype(wide) * scale
    W = A.astype(wide) @ U - previous * beta
    alpha = np.sum(U.conj() * W, axis=0)
    R = W - U * alpha
    operator = mf.aslinearoperator(with_indices(A, index_type))
    got_R, got_alpha, got_norms = operator.lanczos_step(V, previous.copy(), beta, scale)
    assert got_R.dtype == dtype
    assert got_alpha.dtype == wide
    assert_close(got_R, R, dtype)
    assert_close(got_alpha, alpha, dtype)
    assert_close(got_norms, np.linalg.norm(R, axis=0), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128], ids=lambda t: t.__name__)
def test_matmat_is_that_of_the_dense_matrix(dtype):
    A = sparse_hermitian(150, dtype)[:, :97]
    X = np.random.default_rng(1).standard_normal((97, 11)).astype(dtype)
    operator = mf.aslinearoperator(sp.csr_array(A))
    for block in (X, np.asfortranarray(X), X[:, :3], X[:, ::2], np.repeat(X, 2, axis=1)):
        assert_close(operator @ block, A @ block, dtype)
    assert (operator @ X).flags.c_contiguous
    Y = np.random.default_rng(2).standard_normal((150, 11)).astype(dtype)
    for block in (Y, np.asfortranarray(Y), Y[:, :3], Y[:, :1]):
        assert_close(operator.H @ block, A.conj().T @ block, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128], ids=lambda t: t.__name__)
def test_quadratic_forms_are_those_of_the_dense_matrix(dtype):
    A = sparse_hermitian(1500, dtype)  # more than one chunk of rows
    A[3, 5] += 1  # no symmetry is used
    X = np.random.default_rng(1).standard_normal((1500, 6)).astype(dtype)
    operator = mf.aslinearoperator(sp.csr_array(A))
    wide = np.result_type(dtype, np.float64)
    got = operator.quadratic_forms(X)
    expected = np.sum(X.conj() * (A.astype(wide) @ X), axis=0)
    assert got.dtype == wide
    assert_close(got, expected, dtype, scale=np.abs(A).sum())
    assert operator.quadratic_forms(np.asfortranarray(X)) is None


@pytest.mark.parametrize("kind", ["rademacher", "z4"])
def test_a_trace_from_quadratic_forms_is_that_from_matvecs(kind, monkeypatch):
    A = sparse_hermitian(300, np.complex128 if kind == "z4" else np.float64)
    options = {"num_probes": 7, "block_size": 3, "kind": kind, "seed": 4}
    ours = mf.trace(sp.csr_array(A), **options)
    plain = mf.trace(A, **options)
    assert ours.num_matvecs == plain.num_matvecs == 7
    assert_close(ours.samples, plain.samples, scale=np.abs(A).sum())
    A[7, 9] = np.nan
    with pytest.raises(mf.NonFiniteError, match=r"1 to 3 .*NaN or infinity"):
        mf.trace(sp.csr_array(A), **options)


@pytest.mark.parametrize("arrange", [sp.csr_array, in_disorder], ids=["sorted", "in disorder"])
@pytest.mark.parametrize("name", HARD)
def test_quadratures_of_hard_matrices_are_those_of_their_eigenvectors(name, arrange):
    A = HARD[name]
    n, scale = len(A), np.abs(A).max() or 1.0
    W = mf.space_like(A, n).probes(K, seed=3)
    T = mf.lanczos(arrange(A), W, min(n, 30), reorthogonalize="none")
    values, vectors = np.linalg.eigh(A)

    def f(x):
        return np.cos(x / scale)

    expected = (vectors.T @ W).T ** 2 @ f(values)
    assert_close(
        quadrature_sums(T, f), expected, scale=1e3 * n
    )  # spurious copies of eigenvalues change the last digits
    assert T.num_matvecs <= K * min(n, 30)
    if name in ("identity", "zero"):
        assert [len(alpha) for alpha in T.alphas] == [1] * K


@pytest.mark.parametrize("own", [True, False], ids=["own steps", "arrays"])
@pytest.mark.parametrize("k", [4, 20])
@pytest.mark.parametrize("factor", [1.0, 0.3, 1e-30])
def test_rounding_in_sums_of_equal_terms_is_not_taken_for_asymmetry(
    own, k, factor, strategy, monkeypatch
):
    monkeypatch.setattr(sliced_products, "_MIN_HEIGHT", 1 << 10)
    monkeypatch.setattr(sliced_products, "_SLICE_ENTRIES", 1 << 16)  # the largest height of slices
    use_strategy(strategy if own else None, monkeypatch)
    n = 50_000
    A = (factor * sp.eye_array(n)).tocsr()
    T = mf.lanczos(A, mf.space_like(np.empty(0), n).probes(k, seed=0), 9, reorthogonalize="none")
    assert [len(alpha) for alpha in T.alphas] == [1] * k
    assert_close(np.concatenate(T.alphas), np.full(k, factor), scale=10 * factor)


def test_matvecs_are_counted_alike_with_and_without_fused_steps(monkeypatch):
    A = laplacian_2d(12) + 0.1 * sp.eye_array(144)
    ours = mf.logdet(A, num_probes=6, num_steps=20, seed=0)
    use_strategy(None, monkeypatch)
    plain = mf.logdet(A, num_probes=6, num_steps=20, seed=0)
    assert ours.num_matvecs == plain.num_matvecs == 120
    assert_close(ours.samples, plain.samples)


def test_nan_in_the_matrix_is_named():
    A = laplacian_2d(12)
    A.data[40] = np.nan
    with pytest.raises(mf.NonFiniteError, match="contains NaN or infinity"):
        mf.logdet(A, num_probes=6, num_steps=20, seed=0)


def test_an_unsymmetric_matrix_is_refused_with_the_same_message(strategy, monkeypatch):
    A = laplacian_2d(12) + sp.eye_array(144, k=1)
    texts = []
    for steps in (strategy, None):
        use_strategy(steps, monkeypatch)
        with pytest.raises(mf.NotHermitianError) as caught:
            mf.logdet(A, num_probes=6, num_steps=20, seed=0)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_start_vectors_may_be_in_fortran_order():
    A = laplacian_2d(12)
    start = np.asfortranarray(mf.space_like(np.empty(0), 144).probes(K, seed=0))
    there = mf.lanczos(A, start, 12, reorthogonalize="none")
    here = mf.lanczos(A, np.ascontiguousarray(start), 12, reorthogonalize="none")
    assert np.array_equal(there.alphas, here.alphas)
    narrow = mf.lanczos(A, start[:, :2], 12, reorthogonalize="none")
    assert_close(narrow.alphas, here.alphas[:2])


def test_the_numbers_do_not_depend_on_the_threads(monkeypatch):
    A = laplacian_2d(80)  # several chunks of rows
    start = mf.space_like(np.empty(0), 6400).probes(8, seed=0)
    seen = []
    for number in ("1", "2", "3"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", number)
        assert threads.num_threads() == int(number)
        T = mf.lanczos(A, start, 12, reorthogonalize="none")
        seen.append((T.alphas, T.betas, mf.aslinearoperator(A) @ start))
    for one in seen[1:]:
        assert all(np.array_equal(x, y) for x, y in zip(one, seen[0], strict=True))


def test_sums_over_rows_are_double_precision():
    n = 300_000
    A = sp.eye_array(n, dtype=np.float32).tocsr()
    V = np.full((n, 4), n**-0.5, dtype=np.float32)
    exact = n * float(V[0, 0]) ** 2
    operator = mf.aslinearoperator(A)
    _, alpha, _ = operator.lanczos_step(V, np.zeros_like(V), np.zeros(4), np.ones(4))
    assert np.abs(alpha / exact - 1).max() < 1e-12  # single precision is off by 1e-5


@pytest.mark.parametrize("strategy", ["slices"], indirect=True)
def test_slices_are_views_of_the_matrix(monkeypatch):
    A = laplacian_2d(12)
    for part in sliced_products.SlicedProducts(A)._slices_for(np.zeros((144, 2))):
        assert np.shares_memory(part.matrix.data, A.data)
        assert np.shares_memory(part.matrix.indices, A.indices)
        assert_close(part.matrix.toarray(), A.toarray()[part.rows])
    monkeypatch.undo()
    assert mf.aslinearoperator(A).lanczos_step is None  # too small for slices
    large = mf.aslinearoperator(sp.eye_array(1 << 15).tocsr())
    assert large.lanczos_step is not None


@only_compiled
def test_blocks_too_narrow_for_compiled_loops_are_multiplied_by_slices(monkeypatch):
    monkeypatch.setattr(sliced_products, "MIN_ROWS", 0)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    matrix, took = laplacian_2d(12), []
    A = mf.aslinearoperator(matrix)
    for kind in (compiled_products.CompiledProducts, sliced_products.SlicedProducts):

        def watched(self, X, product=kind.matmat):
            Y = product(self, X)
            took.extend([type(self)] if Y is not None else [])
            return Y

        monkeypatch.setattr(kind, "matmat", watched)
    X = A.space.probes(8, seed=0)
    for k, expected in (
        (7, sliced_products.SlicedProducts),
        (8, compiled_products.CompiledProducts),
    ):
        block = np.ascontiguousarray(X[:, :k])
        assert_close(A @ block, matrix.toarray() @ block)
        assert set(took) == {expected}
        took.clear()


def test_an_operator_is_freed_without_the_garbage_collector():
    A = mf.aslinearoperator(laplacian_2d(12))
    assert A.quadratic_forms(A.space.probes(K, seed=0)).shape == (K,)
    gone = weakref.ref(A)
    gc.disable()  # gigabytes must not stay allocated until it runs
    try:
        del A
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("own_first", [True, False])
def test_a_checkpoint_can_be_resumed_by_another_strategy(
    own_first, strategy, tmp_path, monkeypatch
):
    A = laplacian_2d(12) + 0.1 * sp.eye_array(144)
    options = {"num_probes": 10, "num_steps": 20, "block_size": 5, "seed": 0}
    unbroken = mf.logdet(A, **options)
    first, second = (strategy, None) if own_first else (None, strategy)
    saves, save = [], Checkpoint.save

    def stop_within_the_second_block(self, *holders):
        save(self, *holders)
        saves.append(holders)
        if len(saves) == 8:
            raise KeyboardInterrupt

    use_strategy(first, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop_within_the_second_block)
        with pytest.raises((KeyboardInterrupt, mf.Interrupted)):
            mf.logdet(A, **options, checkpoint=tmp_path / "run")
    use_strategy(second, monkeypatch)
    resumed = mf.logdet(A, **options, checkpoint=tmp_path / "run")
    assert_close(resumed.samples, unbroken.samples)
    assert resumed.num_matvecs < 300  # it did not start from the beginning


@only_compiled
def test_repr_names_compiled_products_which_small_matrices_do_not_use(monkeypatch):
    A = laplacian_2d(12)
    assert "compiled by numba" in repr(mf.aslinearoperator(A))
    monkeypatch.undo()
    assert "numba" not in repr(mf.aslinearoperator(A))
    assert mf.aslinearoperator(A).lanczos_step is None


@only_compiled
def test_small_problems_never_import_numba():
    code = (
        "import sys, scipy.sparse as sp, matfree as mf;"
        "mf.logdet(sp.eye_array(500).tocsr(), num_probes=8, seed=0);"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@only_compiled
def test_without_a_writable_folder_kernels_are_compiled_without_a_cache(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda kernel: (kernel, options)

    monkeypatch.setitem(sys.modules, "numba", types.SimpleNamespace(njit=njit))
    kernel, options = compilation.compiled.__wrapped__(compiled_products.second_pass)
    assert kernel is compiled_products.second_pass
    assert options["nogil"]
