"""Memory budgets of Lanczos runs: the chosen scheme, its peak memory, and its accuracy."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from support.backends import MAKERS, assert_close, tolerance
from support.matrices import complex_hermitian, laplacian_2d_spectrum, nn_spectrum, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.algorithms.krylov.memory_plan import MemoryModel, StorageScheme, choose_storage
from matfree.arrays import half_type, to_host

N = 30_000
M = 24  # steps


def large(dtype):
    return mf.aslinearoperator(
        scipy.sparse.diags_array(np.linspace(0.5, 1.0, N).astype(dtype)).tocsr()
    )


@pytest.fixture(params=["numpy", "torch"])
def with_half(request):
    """The backends with 16-bit numbers."""
    return MAKERS[request.param]()


def start_vectors(A, k):
    return A.space.probes(k, seed=3)


RUNS = {
    "density": lambda A, **options: mf.spectral_density(
        A, num_steps=M, num_probes=4, seed=0, **options
    ),
    "known eigenvalues": lambda A, **options: mf.spectral_density(
        A, num_steps=M, num_probes=4, seed=0, eigenpairs=few_pairs(A), **options
    ),
    "trace of a function": lambda A, **options: mf.trace_function(
        A, "log", num_steps=M, num_probes=4, reorthogonalize="full", seed=0, **options
    ),
    "lanczos": lambda A, **options: mf.lanczos(A, start_vectors(A, 4), M, **options),
    "measured noise": lambda A, **options: mf.spectral_density(
        A, num_steps=M, num_probes=4, measure_noise=True, seed=0, **options
    ),
    "kernel polynomials": lambda A, **options: mf.spectral_density(
        A, method="kpm", num_steps=M, num_probes=4, seed=0, **options
    ),
}


def few_pairs(A):
    """Exact eigenpairs of ``large``."""
    vectors = np.zeros((N, 3), dtype=A.space.dtype)
    vectors[[-1, -2, -3], [0, 1, 2]] = 1
    values = np.linspace(0.5, 1.0, N)[[-1, -2, -3]]
    return mf.EigenResult(
        values=values,
        vectors=vectors,
        residuals=np.zeros(3),
        converged=np.ones(3, dtype=bool),
        norm=1.0,
        which="LM",
        method="given",
        num_matvecs=0,
        num_steps=0,
        reason="",
        seed=0,
    )


def measured(function, *args, **options):
    """The result of a function, and the peak memory of the call in bytes."""
    tracemalloc.start()
    try:
        return function(*args, **options), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.float32) for name in RUNS]
    + [("density", np.complex128), ("known eigenvalues", np.float64), ("lanczos", np.float64)],
)
def test_the_peak_is_within_the_budget_and_as_predicted(name, dtype):
    run, A = RUNS[name], large(dtype)
    vector, budget, chosen = N * np.dtype(dtype).itemsize, 1 << 40, set()
    while budget >= 14 * vector:
        try:
            result, peak = measured(run, A, memory=budget)
        except MemoryError:
            break
        scheme = result.memory
        assert scheme["predicted"] <= scheme["budget"] == budget
        assert (
            0.6 * scheme["predicted"] <= peak <= 1.02 * scheme["predicted"]
        )  # 2 % for T and other small arrays
        chosen.add((scheme["basis"], scheme["at_once"]))
        budget = int(0.6 * scheme["predicted"])
    assert len(chosen) >= (1 if name == "kernel polynomials" else 2)


SPECTRA = {
    "outliers": nn_spectrum(400),
    "clusters": np.r_[np.linspace(0, 1, 300), np.repeat([5.0, 5.00005, 20.0], [2, 3, 30])],
    "many scales": np.geomspace(1e-9, 1, 300),
    "both ends": np.r_[-np.geomspace(1, 100, 8), np.linspace(-1, 1, 300), np.geomspace(1, 90, 8)],
    "laplacian": laplacian_2d_spectrum(18),
    "small": np.r_[np.linspace(0, 1, 30), 5.0, 9.0],
}


def test_the_copies_that_a_checkpoint_makes_are_predicted(tmp_path):
    A = large(np.float32)
    for number, kind in enumerate(("full", "half")):
        result, peak = measured(
            RUNS["density"],
            A,
            memory=1 << 40,
            reorthogonalize=kind,
            checkpoint=tmp_path / str(number),
        )
        assert 0.6 * result.memory["predicted"] <= peak <= 1.02 * result.memory["predicted"]


@pytest.mark.parametrize("name", SPECTRA)
def test_errors_of_nodes_from_a_basis_in_16_bits_are_within_their_bounds(with_half, dtype, name):
    spectrum = SPECTRA[name]
    n, norm = len(spectrum), np.abs(spectrum).max()
    A = with_half.asarray(with_spectrum(spectrum).astype(dtype))
    start = mf.space_like(A, n).probes(2, seed=0)
    half = mf.lanczos(A, start, min(n, 80), reorthogonalize="half")
    assert half.bases == ()
    for p in range(2):
        nodes, weights, residuals = half.ritz(p)
        assert (
            0 < half.node_error(p) <= 2e-6 * norm
        )  # errors of 1e-8, times the factor of the bound
        distance = np.abs(nodes[:, None] - spectrum[None, :]).min(axis=1)
        assert (distance <= residuals + 100 * np.finfo(dtype).eps * norm).all()
        assert weights.sum() == pytest.approx(1)


def test_a_basis_in_16_bits_finds_outliers_once_and_the_bulk_as_accurately_as_a_full_basis():
    spectrum = nn_spectrum(2000)
    A = scipy.sparse.diags_array(spectrum).tocsr()
    start = mf.space_like(np.zeros(1), 2000).probes(1, seed=0, kind="gaussian")
    nodes, errors, bulk, grid = {}, {}, {}, np.linspace(-0.04, 0.4, 500)
    for kind in ("full", "half", "none"):
        nodes[kind], weights = mf.lanczos(A, start, 64, reorthogonalize=kind).quadrature()
        off = np.abs(nodes[kind][:, None] - spectrum[None, :10])
        errors[kind] = off.min(axis=0).max() / 150
        cdf = (weights[None, :] * (nodes[kind][None, :] <= grid[:, None])).sum(axis=1)
        bulk[kind] = np.abs(cdf - np.searchsorted(np.sort(spectrum), grid) / 2000).mean()
    assert [(nodes[kind] > 0.9).sum() for kind in ("full", "half")] == [10, 10]
    assert (nodes["none"] > 0.9).sum() >= 30  # copies, which use up steps that the bulk needs
    assert errors["half"] <= 1e-8  # measured: 2e-9
    assert bulk["half"] <= 1.01 * bulk["full"]


def test_a_run_in_16_bits_ends_at_an_invariant_krylov_space(with_half, dtype):
    A = with_half.asarray(np.diag(np.repeat([1.0, 2.0, 5.0, 10.0], 25)).astype(dtype))
    density = mf.spectral_density(A, num_probes=2, reorthogonalize="half", seed=0)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        assert_close(nodes, [1.0, 2.0, 5.0, 10.0], np.float32)
        assert_close(weights, np.full(4, 0.25), np.float32)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_errors_in_16_bits_do_not_depend_on_the_scale(scale):
    A = with_spectrum(nn_spectrum(150))
    options = {"num_steps": 40, "num_probes": 2, "reorthogonalize": "half", "seed": 0}
    plain, scaled = (mf.spectral_density(c * A, **options) for c in (1.0, scale))
    assert_close(scaled.nodes[1] / scale, plain.nodes[1], np.float32)
    assert scaled.storage_error == pytest.approx(plain.storage_error, rel=0.2)


def test_an_unsymmetric_operator_is_detected_in_16_bits_too():
    A = np.random.default_rng(0).standard_normal((60, 60))
    with pytest.raises(mf.NotHermitianError):
        mf.lanczos(A, np.ones(60), 30, reorthogonalize="half")


def test_the_noise_floor_and_the_bias_include_the_error_of_16_bits():
    A = with_spectrum(np.geomspace(1e-5, 1, 300))
    options = {"num_steps": 60, "num_probes": 2, "seed": 0}
    full, half = (
        mf.spectral_density(A, reorthogonalize=kind, **options) for kind in ("full", "half")
    )
    assert full.storage_error == 0
    assert half.noise_floor == pytest.approx(half.storage_error, rel=0.01)
    assert "noise floor" in str(half)
    full, half = (mf.logdet(A, reorthogonalize=kind, **options) for kind in ("full", "half"))
    assert abs(half.value - full.value) <= half.bias
    exact = mf.trace_function(A, np.exp, reorthogonalize="half", **options)
    assert exact.bias < 1e-4


def test_the_interval_of_a_count_in_16_bits_contains_the_exact_count():
    spectrum = nn_spectrum(300)
    for seed in range(5):
        count = mf.eigenvalue_count(
            with_spectrum(spectrum), 0.5, 200.0, reorthogonalize="half", num_probes=4, seed=seed
        )
        low, high = count.interval()
        assert low <= 10 <= high


def test_schemes_are_preferred_in_the_order_fewer_at_once_then_16_bits_then_no_basis():
    model = MemoryModel(mf.space_like(np.zeros(1), N), M)
    wanted = StorageScheme("full", 4, keep_basis=False)
    schemes = []
    for vectors in range(200, 8, -3):
        scheme = choose_storage(model, wanted, vectors * 8 * N)
        assert scheme.predicted <= vectors * 8 * N
        schemes.append((scheme.reorthogonalize, scheme.at_once))
    rank = {"full": 0, "half": 1, "none": 2}
    order = [(rank[basis], -at_once) for basis, at_once in schemes]
    assert order == sorted(order)
    assert {("full", 4), ("full", 1), ("half", 1), ("none", 1)} <= set(schemes)


def test_fewer_start_vectors_at_once_do_not_change_the_results():
    A = with_spectrum(nn_spectrum(200))
    options = {"num_steps": 20, "num_probes": 4, "seed": 0}
    whole = mf.spectral_density(A, **options)
    less = mf.spectral_density(A, memory=8 * 200 * 40, **options)
    assert less.memory["basis"] == "full"
    assert less.memory["at_once"] == 1
    for a, b in zip(less.nodes, whole.nodes, strict=True):
        assert_close(a, b, scale=150)


@pytest.mark.parametrize("name", RUNS)
def test_an_insufficient_budget_is_refused_with_the_minimum(name):
    run, A = RUNS[name], large(np.float32)
    with pytest.raises(MemoryError, match="the minimum is") as caught:
        run(A, memory=1000)
    least = int(str(caught.value).rpartition("memory=")[2].rstrip("."))
    assert run(A, memory=least).memory["predicted"] == least
    with pytest.raises(MemoryError):
        run(A, memory=least - 1)


@pytest.mark.parametrize("memory", [-1, 2.5, True, "2 GB"])
def test_a_budget_that_is_not_a_number_of_bytes_is_refused(memory):
    with pytest.raises(ValueError, match="memory must be a number of bytes"):
        mf.spectral_density(np.eye(5), memory=memory)


def test_a_library_without_16_bit_numbers_uses_the_next_scheme():
    strict = MAKERS["strict"]()
    A = strict.asarray(with_spectrum(nn_spectrum(300)))
    start = mf.space_like(A, 300).probes(1, seed=0)
    with pytest.raises(ValueError, match="needs 16-bit numbers"):
        mf.lanczos(A, start, 30, reorthogonalize="half")
    T = mf.lanczos(A, start, 30, memory=8 * 300 * 20)
    assert T.memory["basis"] == T.reorthogonalize == "none"


def test_the_scheme_is_printed_and_saved(tmp_path):
    A = large(np.float32)
    for name in ("density", "trace of a function", "lanczos"):
        run = RUNS[name]
        result = run(A, memory=60 * 4 * N)
        assert "MiB of 6.87 MiB" in str(result)
        loaded = mf.load(result.save(tmp_path / "result"))
        assert loaded.memory == result.memory, name
    assert "memory" not in str(run(A))


@pytest.mark.parametrize("cuts", [(70, 50), (1, 118, 1)])
def test_every_process_chooses_the_same_scheme_and_results_are_those_of_whole_vectors(
    with_half, cuts
):
    A = with_spectrum(nn_spectrum(120))

    def run(B):
        return mf.spectral_density(B, num_steps=20, num_probes=3, seed=0, reorthogonalize="half")

    whole = run(mf.aslinearoperator(A))
    for shard in run_sharded(cuts, with_half, A, run):
        assert_close(shard.nodes[1], whole.nodes[1], np.float32)
        assert shard.storage_error == pytest.approx(whole.storage_error, rel=0.3)
    largest = 8 * max(cuts)
    choices = [
        run_sharded(
            cuts,
            with_half,
            A,
            lambda B, m=memory: mf.lanczos(B, B.space.probes(2, seed=0), 20, memory=m).memory,
        )
        for memory in (60 * largest, 24 * largest)
    ]
    for shards in choices:
        assert len({(shard["basis"], shard["at_once"]) for shard in shards}) == 1
    assert choices[0][0]["basis"] == "full"
    assert choices[1][0]["basis"] != "full"
    with pytest.raises(MemoryError):
        run_sharded(
            cuts, with_half, A, lambda B: mf.spectral_density(B, memory=10 * len(B.space.rows))
        )


@pytest.mark.parametrize("kind", ["full", "half", "none"])
def test_ritz_vectors_do_not_require_a_basis(backend, dtype, kind):
    if kind == "half" and half_type(backend.xp) is None:
        pytest.skip("the library has no 16-bit numbers")
    if np.issubdtype(dtype, np.complexfloating):
        A = complex_hermitian(150).astype(dtype)
        A = A @ A  # its largest eigenvalues are well separated
    else:
        A = with_spectrum(nn_spectrum(150)).astype(dtype)
    operator = backend.asarray(A)
    start = mf.space_like(operator, 150).probes(2, seed=1)
    T = mf.lanczos(operator, start, 60, reorthogonalize=kind, keep_basis=False)
    pairs = mf.ritz_vectors(operator, T, start=start, k=3, index=1)
    exact = np.linalg.eigvalsh(A)
    exact = exact[np.argsort(-np.abs(exact))][:3]
    assert_close(pairs.values, exact, np.float32)
    U = to_host(pairs.vectors)
    assert_close(U.conj().T @ U, np.eye(3), dtype)
    actual = np.linalg.norm(A @ U - U * pairs.values, axis=0) / np.abs(exact[0])
    # Vectors are as accurate as they are orthogonal, to about 1e-4 in 16 bits; values are better.
    reached = max(tolerance(dtype), 1e-6 if kind != "half" else 2e-4)
    assert_close(pairs.residuals, actual, dtype, scale=1.0)
    assert (pairs.residuals <= reached).all()
    assert pairs.num_matvecs == 2 * 60 + 3


def test_ritz_vectors_are_sharded_like_the_operator(with_half):
    A = with_spectrum(nn_spectrum(120))

    def run(B):
        start = B.space.probes(1, seed=1)
        T = mf.lanczos(B, start, 40, reorthogonalize="half")
        return mf.ritz_vectors(B, T, start=start, k=3)

    whole = run(mf.aslinearoperator(A))
    shards = run_sharded((70, 50), with_half, A, run)
    U = np.concatenate([to_host(shard.vectors) for shard in shards])
    assert_close(shards[1].values, whole.values, np.float32)
    assert_close(np.abs(np.sum(U * whole.vectors, axis=0)), np.ones(3), np.float32)


def test_ritz_vectors_from_a_basis_need_no_second_run_and_are_the_same():
    A = with_spectrum(nn_spectrum(200))
    start = mf.space_like(A, 200).probes(3, seed=1)
    kept = mf.lanczos(A, start, 40)
    dropped = mf.lanczos(A, start, 40, memory=8 * 200 * 60)
    assert dropped.bases == ()
    assert dropped.reorthogonalize == "full"
    first, second = (mf.ritz_vectors(A, T, start=start, k=5, index=2) for T in (kept, dropped))
    assert first.num_matvecs == 5
    assert second.num_matvecs == 5 + 40 * dropped.memory["at_once"]
    assert_close(first.values, second.values)
    assert_close(np.abs(np.sum(first.vectors * second.vectors, axis=0)), np.ones(5))


def test_ritz_vectors_refuses_arguments_that_do_not_belong_together():
    A = with_spectrum(nn_spectrum(80))
    start = mf.space_like(A, 80).probes(2, seed=1)
    T = mf.lanczos(A, start, 20, keep_basis=False)
    with pytest.raises(ValueError, match="T does not belong to this operator"):
        mf.ritz_vectors(with_spectrum(nn_spectrum(80), 5), T, start=start)
    with pytest.raises(ValueError, match="start must have 2 vectors"):
        mf.ritz_vectors(A, T, start=start[:, 0])
    with pytest.raises(ValueError, match=r"index must be in \[0, 2\)"):
        mf.ritz_vectors(A, T, start=start, index=2)
