"""The diagonal from probes without unit modulus: least squares, entry by entry."""

import numpy as np
import pytest
from support.backends import MAKERS, assert_close
from support.matrices import complex_hermitian, wishart, with_spectrum
from support.sharded import run_sharded

import matfree as mf
from matfree.arrays import to_host

KINDS = ["gaussian", "sphere"]


def general(dtype, n=40):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((n, n)) + np.diag(np.arange(n))
    if np.issubdtype(dtype, np.complexfloating):
        A = A + 1j * rng.standard_normal((n, n))
    return A.astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_ratio_of_sums_with_the_error_of_the_fit_on_every_backend(backend, dtype, kind):
    A, m = general(dtype), 9
    estimate = mf.diagonal(backend.asarray(A), num_probes=m, kind=kind, seed=1, block_size=4)
    W = to_host(mf.aslinearoperator(backend.asarray(A)).space.probes(m, seed=1, kind=kind))
    Y, weights = A @ W, np.sum(np.abs(W) ** 2, axis=1)
    d = np.sum(W.conj() * Y, axis=1) / weights
    residue = np.sum(np.abs(Y - d[:, None] * W) ** 2, axis=1)
    assert_close(estimate.value, d, dtype)
    assert_close(estimate.stderr, np.sqrt(residue / (m - 1) / weights), dtype)
    assert not estimate.mergeable


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_a_diagonal_matrix_is_exact_at_every_scale(dtype, scale, kind):
    d = (dtype(scale) * np.r_[1e-6, 1.0, -3.0, 0.0, 1e6]).astype(dtype)
    for num_probes, block_size in ((1, 1), (7, 3)):
        estimate = mf.diagonal(
            np.diag(d), num_probes=num_probes, kind=kind, seed=2, block_size=block_size
        )
        eps = np.finfo(dtype).eps
        assert np.all(np.abs(estimate.value - d) <= 10 * eps * np.abs(d))
        if num_probes > 1:
            assert np.all(estimate.stderr <= 10 * eps * np.abs(d))


@pytest.mark.parametrize(
    ("A", "kind"),
    [
        (wishart(60, 120), "gaussian"),
        (wishart(60, 120), "sphere"),
        (general(np.float64), "gaussian"),
        (complex_hermitian(40), "gaussian"),
    ],
    ids=["gaussian", "sphere", "not symmetric", "complex"],
)
def test_every_interval_has_its_nominal_coverage(A, kind):
    runs, exact = 400, np.diag(A).real
    inside = np.zeros(len(A))
    for seed in range(runs):
        estimate = mf.diagonal(A, num_probes=6, kind=kind, seed=seed)
        inside += np.abs(estimate.value.real - exact) <= estimate.half_width()
    # binomial: 0.95 +- 5 sigma for an entry; the mean over all entries is more accurate
    assert np.all(inside / runs >= 0.95 - 5 * np.sqrt(0.95 * 0.05 / runs))
    assert inside.mean() / runs <= 1.0 if np.iscomplexobj(A) else inside.mean() / runs < 0.97


def test_it_needs_fewer_probes_than_the_unweighted_average():
    A = np.diag(np.linspace(1, 100, 50)) + 0.1 * general(np.float64, 50)
    W = mf.space_like(A, 50).probes(30, seed=0, kind="gaussian")
    plain = np.mean(W * (A @ W), axis=1)
    ours = mf.diagonal(A, num_probes=30, kind="gaussian", seed=0).value
    exact = np.diag(A)
    assert np.linalg.norm(ours - exact) < 0.1 * np.linalg.norm(plain - exact)


def test_tolerances_exact_answers_checkpoints_and_blocks_work_as_for_signs(tmp_path):
    A = with_spectrum(np.linspace(1, 2, 150))
    met = mf.diagonal(A, rtol=0.1, max_matvecs=140, kind="gaussian", seed=0)
    assert met.converged
    assert np.linalg.norm(met.half_width()) <= 0.1 * np.linalg.norm(met.value) * (1 + 1e-12)
    exact = mf.diagonal(A, rtol=1e-9, max_matvecs=150, kind="gaussian", seed=0)
    assert_close(exact.value, np.diag(A))
    values = [
        mf.diagonal(A, num_probes=20, kind="sphere", seed=1, block_size=b) for b in (1, 7, 32)
    ]
    for other in values[1:]:
        np.testing.assert_allclose(other.value, values[0].value, rtol=1e-11)
        np.testing.assert_allclose(other.stderr, values[0].stderr, rtol=1e-9)
    path = tmp_path / "run"
    mf.diagonal(A, num_probes=8, kind="sphere", seed=1, block_size=4, checkpoint=path)
    more = mf.diagonal(A, num_probes=20, kind="sphere", seed=1, block_size=4, checkpoint=path)
    np.testing.assert_allclose(more.value, values[0].value, rtol=1e-11)
    with pytest.raises(ValueError, match="kind is 'sphere' in the file"):
        mf.diagonal(A, num_probes=20, seed=1, checkpoint=path)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_sharded_vectors_give_the_local_rows(name):
    A = general(np.float64)

    def run(B):
        return mf.diagonal(B, num_probes=5, kind="sphere", seed=1)

    shards = run_sharded((13, 27), MAKERS[name](), A, run)
    for what in ("value", "stderr"):
        got = np.concatenate([to_host(getattr(shard, what)) for shard in shards])
        assert_close(got, getattr(run(A), what))


def test_methods_without_weights_and_merging_are_refused():
    for method in ("diag++", "xdiag", "xnysdiag", "deflated"):
        with pytest.raises(ValueError, match='only "hutchinson" normalizes'):
            mf.diagonal(np.eye(9), method=method, kind="gaussian")
    with pytest.raises(ValueError, match="kind must be"):
        mf.diagonal(np.eye(9), kind="cauchy")
    parts = [
        mf.diagonal(general(np.float64), num_probes=4, kind="gaussian", first_probe=i, seed=0)
        for i in (0, 4)
    ]
    with pytest.raises(ValueError, match="cannot be merged"):
        parts[0].merge(parts[1])
