"""Every algorithm runs on sharded vectors and gives the same results as on whole vectors."""

import numpy as np
import pytest
from support.backends import MAKERS, ON_A_GPU, assert_close
from support.matrices import nn_spectrum, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host

N = 100
A = with_spectrum(nn_spectrum(N), seed=3)

SHARDINGS = {"7/3": (70, 30), "three uneven": (1, 64, 35), "odd bytes": (13, 0, 87)}

SCALARS = {
    "hutchinson": lambda B: mf.trace(B, num_probes=9, seed=1, block_size=4),
    "exact trace": lambda B: mf.trace(B, rtol=1e-9, max_matvecs=N, seed=1),
    "hutch++": lambda B: mf.trace(B, method="hutch++", num_probes=20, seed=1),
    "xtrace": lambda B: mf.trace(B, method="xtrace", num_probes=12, seed=1),
    "xnystrace": lambda B: mf.trace(B @ B, method="xnystrace", num_probes=12, seed=1),
    "deflated": lambda B: mf.trace(B, method="deflated", num_probes=12, eigenpairs=4, seed=1),
    "logdet": lambda B: mf.logdet(
        B.shift(200.0), num_probes=4, num_steps=10, reorthogonalize="full", seed=1
    ),
    "eigenvalue count": lambda B: mf.eigenvalue_count(
        B, 0.01, np.inf, num_steps=12, num_probes=4, seed=1
    ),
    "frobenius norm": lambda B: mf.frobenius_norm(B, num_probes=8, seed=1),
}


@pytest.fixture(params=["numpy", "torch", *ON_A_GPU])
def backend(request):
    return MAKERS[request.param]()


@pytest.fixture(params=SHARDINGS.values(), ids=SHARDINGS.keys())
def shard_sizes(request):
    return request.param


@pytest.mark.parametrize("run", SCALARS.values(), ids=SCALARS.keys())
def test_scalar_results_agree_between_all_shards_and_whole_vectors(backend, shard_sizes, run):
    whole = run(mf.aslinearoperator(A))
    for shard in run_sharded(shard_sizes, backend, A, run):
        assert_close(shard.value, whole.value)
        assert_close(shard.stderr, whole.stderr, scale=abs(whole.value))
        assert shard.num_matvecs == whole.num_matvecs


@pytest.mark.parametrize("method", ["hutchinson", "diag++", "xdiag", "deflated"])
def test_a_diagonal_consists_of_the_local_rows(backend, shard_sizes, method):
    def run(B):
        return mf.diagonal(B, method=method, num_probes=12, eigenpairs=4, seed=1)

    shards = run_sharded(shard_sizes, backend, A, run)
    assert_close(np.concatenate([to_host(p.value) for p in shards]), run(A).value)


def test_probes_are_bit_for_bit_the_rows_of_whole_probes(backend, shard_sizes):
    for kind in ("rademacher", "gaussian"):
        whole = mf.space_like(np.zeros(1), N).probes(3, seed=7, kind=kind)
        shards = run_sharded(
            shard_sizes,
            backend,
            A,
            lambda B, kind=kind: to_host(B.space.probes(3, seed=7, kind=kind)),
        )
        if kind == "rademacher":
            assert np.array_equal(np.concatenate(shards), whole)
        else:  # a few units in the last place between libraries
            assert np.abs(np.concatenate(shards) - whole).max() < 1e-14 * 10


def test_eigenvectors_are_sharded_like_all_vectors(backend, shard_sizes):
    for run in (
        lambda B: mf.eigsh(B, 4, seed=0),
        lambda B: mf.power_iteration(B, 2, rtol=1e-6, seed=0),
    ):
        whole = run(mf.aslinearoperator(A))
        shards = run_sharded(shard_sizes, backend, A, run)
        for shard in shards:
            assert_close(shard.values, whole.values, scale=150)
        U = np.concatenate([to_host(p.vectors) for p in shards])
        assert_close(np.abs(np.sum(U * whole.vectors, axis=0)), np.ones(U.shape[1]))


def test_lanczos_and_the_density_agree_with_whole_vectors(backend, shard_sizes):
    start = mf.space_like(np.zeros(1), N).probes(2, seed=3)

    def factorize(B):
        rows = B.space.rows
        block = B.space.xp.asarray(start[rows.start : rows.stop], device=B.space.device)
        return mf.lanczos(B, block, 12)

    whole = mf.lanczos(A, start, 12)
    for shard in run_sharded(shard_sizes, backend, A, factorize):
        assert_close(shard.alphas[1], whole.alphas[1], scale=150)
        assert_close(shard.betas[1], whole.betas[1], scale=150)
    density = mf.spectral_density(A, num_steps=20, num_probes=3, seed=2)
    for shard in run_sharded(
        shard_sizes,
        backend,
        A,
        lambda B: mf.spectral_density(B, num_steps=20, num_probes=3, seed=2),
    ):
        assert_close(shard.moment(3).value, density.moment(3).value)


@pytest.mark.parametrize(
    "options",
    [{"method": "kpm"}, {"eigenpairs": 4}, {"eigenpairs": 4, "method": "kpm"}],
    ids=["kpm", "deflated", "deflated kpm"],
)
def test_every_kind_of_density_agrees_with_whole_vectors(backend, shard_sizes, options):
    def run(B):
        return mf.spectral_density(
            B, num_steps=20, num_probes=3, seed=2, measure_noise=True, **options
        )

    whole = run(mf.aslinearoperator(A))
    for shard in run_sharded(shard_sizes, backend, A, run):
        assert_close(shard.moment(2).value, whole.moment(2).value)
        assert_close(shard.nodes[1], whole.nodes[1], np.float32)
        assert shard.num_matvecs == whole.num_matvecs


def test_check_operator_and_orthonormalize_use_all_rows(backend, shard_sizes):
    assert all(
        r.ok and r.hermitian for r in run_sharded(shard_sizes, backend, A, mf.check_operator)
    )

    def basis(B):
        X = B.space.probes(6, seed=5)
        return to_host(B.space.orthonormalize(B.space.xp.concat((X, X), axis=1)))

    Q = np.concatenate(run_sharded(shard_sizes, backend, A, basis))
    assert Q.shape == (N, 6)
    assert_close(Q.T @ Q, np.eye(6))


def test_an_error_on_one_rank_ends_all(backend):
    def fail(B):
        if B.space.rows.start == 0:
            raise RuntimeError("rank 0 fails")
        return mf.trace(B, num_probes=2, seed=0)

    with pytest.raises(RuntimeError, match="rank 0"):
        run_sharded((70, 30), backend, A, fail)


def test_results_of_shards_are_saved_separately_and_loaded_as_one(backend, shard_sizes, tmp_path):
    start = mf.space_like(np.zeros(1), N).probes(2, seed=3)

    def run(B):
        rows = B.space.rows
        block = B.space.xp.asarray(start[rows.start : rows.stop], device=B.space.device)
        return {
            "diagonal": mf.diagonal(B, num_probes=4, seed=1),
            "eigsh": mf.eigsh(B, 3, seed=0),
            "power": mf.power_iteration(B, 1, rtol=1e-3, seed=0),
            "svds": mf.svds(B, 2, rtol=1e-4, seed=0),
            "lanczos": mf.lanczos(B, block, 5, reorthogonalize="full"),
            "trace": mf.trace(B, num_probes=4, seed=1),
            **mf.block_diagonals(
                B, {"head": slice(0, 20), "tail": slice(20, N)}, num_probes=4, seed=1, joint=True
            ),
        }

    def save(B):
        for name, result in run(B).items():
            result.save(tmp_path / name)

    run_sharded(shard_sizes, backend, A, save)
    for name, whole in run(mf.aslinearoperator(A)).items():
        read = mf.load(tmp_path / name)
        for axes in read.by_row.values():
            assert getattr(read, axes[1]) is None
        for field in read.by_row:
            got, expected = getattr(read, field), getattr(whole, field)
            got, expected = (
                np.abs(np.asarray(x)) for x in (got, expected)
            )  # the signs of vectors are arbitrary
            assert_close(got, expected, np.float32 if name == "power" else np.float64, scale=150)


def test_shards_that_do_not_form_one_result_are_refused_by_name(tmp_path):
    def save(seed, shard_sizes):
        run_sharded(
            shard_sizes,
            MAKERS["numpy"](),
            A,
            lambda B: mf.diagonal(B, num_probes=4, seed=seed).save(tmp_path / "diagonal"),
        )

    save(1, (70, 30))
    (tmp_path / "diagonal.rows-0-70.npz").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="rows 0 to 70 are missing"):
        mf.load(tmp_path / "diagonal")
    (tmp_path / "away").rename(tmp_path / "diagonal.rows-0-70.npz")
    (tmp_path / "diagonal.rows-70-100.npz").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="rows 70 to 100 are missing"):
        mf.load(tmp_path / "diagonal.npz")
    save(1, (50, 50))
    with pytest.raises(ValueError, match="rows 0 to 50 are present twice"):
        mf.load(tmp_path / "diagonal")
    (tmp_path / "diagonal.rows-0-50.npz").unlink()
    (tmp_path / "diagonal.rows-50-100.npz").unlink()
    save(2, (80, 20))
    (tmp_path / "diagonal.rows-0-80.npz").unlink()
    with pytest.raises(ValueError, match="belong to different results: seed differs"):
        mf.load(tmp_path / "diagonal")
    with pytest.raises(FileNotFoundError):
        mf.load(tmp_path / "nothing")
