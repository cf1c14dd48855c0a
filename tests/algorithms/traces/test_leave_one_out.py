"""XTrace, XNysTrace and XDiag: the fast formulas equal a direct computation without a probe."""

import numpy as np
import pytest
from support.matrices import complex_hermitian, with_spectrum

import matfree as mf
from matfree.algorithms.low_rank.range_sketch import jackknife_stderr
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.traces.xnystrace import XNysTrace
from matfree.algorithms.traces.xtrace import XTrace
from matfree.arrays import to_host

N, K = 60, 12


def general(dtype):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((N, N)) * 0.9 ** np.arange(N)
    if np.issubdtype(dtype, np.complexfloating):
        A = A + 1j * rng.standard_normal((N, N)) * 0.9 ** np.arange(N)
    return A


def run(estimator_type, A, kind, num_probes=K):
    counted = CountedOperator(A)
    options = {"num_probes": num_probes, "block_size": 5, "kind": kind}
    plan = Plan.make(counted, options, seed=1)
    estimator = estimator_type(counted, plan)
    for start in range(0, num_probes, 5):
        estimator.advance(start, min(5, num_probes - start))
    return estimator, counted.space.probes(num_probes, seed=1, kind=kind)


def direct_xtrace(A, W, resphere):
    """The estimates est_i, each with a newly computed projector."""
    estimates = []
    for i in range(W.shape[1]):
        Q = np.linalg.qr(A @ np.delete(W, i, axis=1))[0]
        w = W[:, i] - Q @ (Q.conj().T @ W[:, i])
        c = (N - Q.shape[1]) / np.vdot(w, w).real if resphere else 1.0
        estimates.append(np.trace(Q.conj().T @ A @ Q) + c * np.vdot(w, A @ w))
    return np.array(estimates)


# P08
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("kind", ["sphere", "rademacher"])
def test_xtrace_equals_the_direct_computation(dtype, kind):
    A = general(dtype)
    estimator, W = run(XTrace, A, kind)
    expected = direct_xtrace(A, W, resphere=kind == "sphere")
    np.testing.assert_allclose(estimator.summary().samples, expected, rtol=1e-10)


@pytest.mark.parametrize("complex_matrix", [False, True])
def test_xnystrace_equals_the_direct_computation(complex_matrix):
    if complex_matrix:
        C = complex_hermitian(N)
        A = C @ C + 0.1 * np.eye(N)
    else:
        A = with_spectrum(0.8 ** np.arange(N) + 0.01)
    estimator, W = run(XNysTrace, A, "rademacher")
    expected = []
    for i in range(K):
        V = np.delete(W, i, axis=1)
        Y = A @ V
        rest = A - Y @ np.linalg.solve(V.conj().T @ Y, Y.conj().T)
        w = W[:, i]
        expected.append(np.trace(A - rest).real + np.vdot(w, rest @ w).real)
    np.testing.assert_allclose(estimator.summary().samples, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("kind", ["sphere", "rademacher"])
def test_the_standard_error_of_xtrace_is_the_jackknife_over_probes(dtype, kind):
    A = general(dtype)
    estimator, W = run(XTrace, A, kind)
    resphere = kind == "sphere"
    means = [direct_xtrace(A, np.delete(W, i, axis=1), resphere).mean() for i in range(K)]
    expected = np.sqrt(np.sum(np.abs(means - np.mean(means)) ** 2))
    assert estimator.summary().stderr == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_probes", [6, 7, 12])
def test_the_standard_error_of_xtrace_is_rounding_for_low_rank(num_probes):
    L = np.random.default_rng(0).standard_normal((200, 5))
    estimate = mf.trace(L @ L.T, method="xtrace", num_probes=num_probes, seed=0)
    low, high = estimate.interval()
    assert low <= np.sum(L * L) <= high
    assert high - low <= 1e-10 * np.sum(L * L)


def test_one_probe_has_an_infinite_standard_error():
    assert jackknife_stderr(np.ones(1)) == np.inf
    estimator, _ = run(XTrace, general(np.float64), "rademacher", num_probes=1)
    assert estimator.summary().stderr == np.inf


def direct_xnystrace(A, W, resphere):
    """The estimates est_i, each with a newly computed approximation."""
    estimates, k = [], W.shape[1]
    scale = (N - k + 1) * np.diag(np.linalg.inv(W.conj().T @ W)).real if resphere else np.ones(k)
    for i in range(k):
        V, w = np.delete(W, i, axis=1), W[:, i]
        Y = A @ V
        rest = A - Y @ np.linalg.solve(V.conj().T @ Y, Y.conj().T)
        estimates.append(np.trace(A - rest).real + scale[i] * np.vdot(w, rest @ w).real)
    return np.array(estimates)


@pytest.mark.parametrize("complex_matrix", [False, True])
@pytest.mark.parametrize("kind", ["sphere", "rademacher"])
def test_the_standard_error_of_xnystrace_is_the_jackknife_over_probes(complex_matrix, kind):
    A = with_spectrum(0.8 ** np.arange(N) + 0.01)
    if complex_matrix:
        C = complex_hermitian(N)
        A = C @ C + 0.1 * np.eye(N)
    estimator, W = run(XNysTrace, A, kind)
    resphere = kind == "sphere"
    means = [direct_xnystrace(A, np.delete(W, i, axis=1), resphere).mean() for i in range(K)]
    expected = np.sqrt(np.sum((means - np.mean(means)) ** 2))
    summary = estimator.summary()
    np.testing.assert_allclose(summary.samples, direct_xnystrace(A, W, resphere), rtol=1e-9)
    assert summary.stderr == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_probes", [70, 80, 100, 160])
def test_intervals_of_xnystrace_cover_if_its_core_matrix_is_singular_to_rounding(num_probes):
    spectrum = 0.7 ** np.arange(300)  # the core matrix is numerically singular
    A, inside = with_spectrum(spectrum), 0
    for seed in range(20):
        estimate = mf.trace(A, method="xnystrace", num_probes=num_probes, seed=seed)
        low, high = estimate.interval()
        inside += low <= spectrum.sum() <= high
        assert estimate.stderr < 1e-8 * spectrum.sum()
    assert inside >= 18


# P09
def test_low_rank_operators_are_exact():
    L = np.random.default_rng(0).standard_normal((200, 5))
    indefinite, psd = L * [3.0, -2, 1, 1, -1] @ L.T, L @ L.T
    scale = np.linalg.norm(indefinite)
    for method, A, options in (
        ("hutch++", indefinite, {"max_matvecs": 40}),
        ("xtrace", indefinite, {"max_matvecs": 20}),
        ("xnystrace", psd, {"num_probes": 10}),
    ):
        estimate = mf.trace(A, method=method, seed=0, **options)
        assert abs(estimate.value - np.trace(A)) <= 1e-9 * scale
    assert (
        np.abs(
            mf.diagonal(indefinite, method="xdiag", num_probes=10, seed=0).value
            - np.diag(indefinite)
        ).max()
        <= 1e-9 * scale
    )


def test_a_scale_of_1e_20_does_not_count_as_rank_deficiency():
    A = 1e-20 * with_spectrum(1.0 / np.arange(1, 101) ** 2)
    estimate = mf.trace(A, method="xtrace", num_probes=20, seed=0)
    assert abs(estimate.value / np.trace(A) - 1) < 0.01


# P20
def test_xtrace_with_resphering_is_unbiased():
    A = general(np.float64)
    values = np.array(
        [mf.trace(A, method="xtrace", num_probes=6, seed=s).value for s in range(600)]
    )
    assert abs(values.mean() - np.trace(A)) <= 4.5 * values.std() / np.sqrt(600)


# P23
@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
@pytest.mark.parametrize("decay", ["poly", "slowexp", "fastexp"])
def test_intervals_of_leave_one_out_methods_have_their_nominal_coverage(method, decay):
    i = np.arange(300)
    spectrum = {"poly": (i + 1.0) ** -2, "slowexp": 0.9**i, "fastexp": 0.7**i}[decay]
    A = with_spectrum(spectrum)
    inside = 0
    for seed in range(40):
        low, high = mf.trace(A, method=method, max_matvecs=30, seed=seed).interval()
        inside += low <= spectrum.sum() <= high
    assert inside >= 36


def test_indefinite_operators_are_refused_by_nystrom_methods():
    A = with_spectrum(np.linspace(-1, 1, 50))
    for run_method in (
        lambda: mf.trace(A, method="xnystrace", num_probes=10, seed=0),
        lambda: mf.diagonal(A, method="xnysdiag", num_probes=10, seed=0),
    ):
        with pytest.raises(mf.OperatorError, match="positive semidefinite"):
            run_method()


def test_diagonal_methods_for_hermitian_operators_refuse_others():
    A = general(np.float64)
    forward = mf.aslinearoperator(lambda x: A @ x, shape=A.shape, like=np.zeros(1))
    for method, operator in (("diag++", A), ("xdiag", forward)):  # xdiag may use an adjoint
        with pytest.raises(mf.NotHermitianError):
            mf.diagonal(operator, method=method, num_probes=12, seed=0)


def test_diag_plus_plus_is_unbiased_unlike_the_one_sided_formula():
    A = with_spectrum(np.r_[5.0, 3.0, np.linspace(-1, 1, 28)])
    values = np.array(
        [mf.diagonal(A, method="diag++", num_probes=6, seed=s).value for s in range(2000)]
    )
    z = (values.mean(axis=0) - np.diag(A)) / (values.std(axis=0) / np.sqrt(2000))
    assert np.sqrt(np.mean(z**2)) < 1.6  # 30 entries of rms 1; the biased formula gives 8


def test_the_eigenpairs_of_a_nearby_operator_deflate_without_a_bias():
    spectrum = np.r_[40.0, 30.0, 20.0, np.linspace(-1, 1, 77)]
    before, now = with_spectrum(spectrum, seed=1), with_spectrum(1.5 * spectrum, seed=1)
    now = now + 0.05 * with_spectrum(np.linspace(-1, 1, 80), seed=2)
    pairs = mf.eigsh(before, 3, seed=0)
    own = mf.trace(before, method="deflated", eigenpairs=pairs, num_probes=20, seed=0)
    assert own.num_matvecs == 20 + 1  # one matvec verifies the values
    other = mf.trace(now, method="deflated", eigenpairs=pairs, num_probes=400, seed=0)
    assert other.num_matvecs == 400 + 1 + 3  # and one per pair if they have changed
    assert abs(other.value - np.trace(now)) <= 4 * other.stderr
    plain = mf.trace(now, num_probes=400, seed=0)
    assert other.stderr < plain.stderr / 5


METHODS_WITH_SKETCH = {
    "xtrace": lambda A, **options: mf.trace(A, method="xtrace", kind="rademacher", **options),
    "xnystrace": lambda A, **options: mf.trace(A, method="xnystrace", kind="rademacher", **options),
    "xdiag": lambda A, **options: mf.diagonal(A, method="xdiag", **options),
    "xnysdiag": lambda A, **options: mf.diagonal(A, method="xnysdiag", **options),
}


def tridiagonal(n):
    A = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    A[0, 0] = 5
    return A


@pytest.mark.parametrize("name", METHODS_WITH_SKETCH)
@pytest.mark.parametrize(("n", "num_probes"), [(4, 3), (5, 3), (6, 4), (3, 2)])
def test_probes_that_are_equal_up_to_sign_do_not_make_a_wrong_value_exact(name, n, num_probes):
    A, covered, errors = tridiagonal(n), [], []
    truth = np.diag(A) if name.endswith("diag") else np.trace(A)
    for seed in range(150):
        estimate = METHODS_WITH_SKETCH[name](A, num_probes=num_probes, seed=seed)
        low, high = estimate.interval()
        inside = (low - 1e-6 <= truth) & (truth <= high + 1e-6)
        assert inside.all() or np.max(estimate.half_width()) > 1e-6
        covered.append(inside.mean())
        errors.append(np.sum(estimate.value - truth))
    assert np.mean(covered) >= 0.88
    assert abs(np.mean(errors)) <= 4 * np.std(errors) / np.sqrt(150)


@pytest.mark.parametrize("name", METHODS_WITH_SKETCH)
def test_a_sketch_of_the_whole_range_is_exact_even_with_repeated_probes(name, backend):
    u = [1.0, 2.0, 4.0, 8.0]  # not orthogonal to any vector of signs
    low_rank = np.outer(u, u)
    for A, num_probes in ((low_rank, 3), (tridiagonal(4), 12)):
        truth = np.diag(A) if name.endswith("diag") else np.trace(A)
        for seed in range(12):
            probes = mf.space_like(np.zeros(1), 4).probes(num_probes, seed=seed)
            if np.linalg.matrix_rank(probes) < min(2 if num_probes == 3 else 4, num_probes):
                continue  # every probe is the same
            estimate = METHODS_WITH_SKETCH[name](
                backend.asarray(A), num_probes=num_probes, seed=seed
            )
            value = to_host(estimate.value) if name.endswith("diag") else estimate.value
            np.testing.assert_allclose(value, truth, atol=1e-9)
            half = estimate.half_width()
            assert np.max(to_host(half) if name.endswith("diag") else half) <= 1e-9


@pytest.mark.parametrize("method", ["xtrace", "xnystrace", "hutch++"])
def test_an_operator_whose_matvecs_are_all_nan_is_refused(method):
    with pytest.raises(mf.NonFiniteError, match="NaN"):
        mf.trace(np.full((5, 5), np.nan), method=method, num_probes=3, seed=0)
