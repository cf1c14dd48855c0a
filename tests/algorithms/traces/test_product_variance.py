"""The variance of a trace from the products of its probes: exact in the mean, for Hermitian A."""

import itertools

import numpy as np
import pytest
from support.intervals import squared_deviations
from support.matrices import complex_hermitian, nn_spectrum, with_spectrum

import matfree as mf

ROOTS = {"rademacher": [1.0, -1.0], "z4": [1.0, 1j, -1.0, -1j]}


def symmetric(n, seed=0):
    G = np.random.default_rng(seed).standard_normal((n, n))
    return (G + G.T) / 2


def draw(monkeypatch, W):
    """Let the probes be the columns of W, in their order."""
    monkeypatch.setattr(
        mf.VectorSpace,
        "probes",
        lambda self, num_probes, *, start=0, **_: W[:, start : start + num_probes],
    )


@pytest.mark.parametrize("block_size", [1, 7, 64])
@pytest.mark.parametrize(
    ("A", "kind"),
    [
        (symmetric(6), "rademacher"),
        (complex_hermitian(6), "rademacher"),
        (complex_hermitian(3), "z4"),
        (np.diag(np.arange(1.0, 7)), "rademacher"),
        (np.ones((6, 6)), "rademacher"),
    ],
    ids=["real", "complex", "fourth roots", "diagonal", "ones"],
)
def test_the_mean_over_all_vectors_of_signs_is_the_variance(A, kind, block_size, monkeypatch):
    vectors = np.array(list(itertools.product(ROOTS[kind], repeat=len(A)))).T.astype(A.dtype)
    draw(monkeypatch, vectors)
    count = vectors.shape[1]
    estimate = mf.trace(A, num_probes=count, kind=kind, seed=0, block_size=block_size)
    exact = np.var(estimate.samples.real)
    # The mean diagonal of all vectors is exact; each deviation is from that of those before.
    assert len(estimate.deviations) == count - 1
    assert abs(np.mean(estimate.deviations**2) * (count - 1) / count - exact) <= 1e-12 * count
    expected = squared_deviations(A, vectors, kind)
    assert np.abs(estimate.deviations**2 - expected).max() <= 1e-12 * np.sum(np.abs(A)) ** 2


def test_the_mean_over_a_circle_is_the_variance_of_probes_on_the_sphere(monkeypatch):
    angle = 2 * np.pi * np.arange(16) / 16  # integrates polynomials of degree 15 exactly
    W = np.sqrt(2) * np.stack((np.cos(angle), np.sin(angle)))
    draw(monkeypatch, W)
    A = symmetric(2)
    estimate = mf.trace(A, num_probes=16, kind="sphere", seed=0)
    variance = 2 * 2 / 4 * (np.sum(A**2) - np.trace(A) ** 2 / 2)
    assert abs(np.var(estimate.samples) - variance) <= 1e-13
    assert abs(np.mean(estimate.deviations**2) - variance) <= 1e-13


@pytest.mark.parametrize("kind", ["gaussian", "sphere"])
@pytest.mark.parametrize("A", [symmetric(30), complex_hermitian(30)], ids=["real", "complex"])
def test_deviations_of_rotationally_invariant_probes_have_the_known_mean_square(A, kind):
    n, F, t = 30, np.sum(np.abs(A) ** 2), np.trace(A).real
    c = 1 if np.iscomplexobj(A) else 2
    exact = {"gaussian": c * F, "sphere": c * n / (n + c) * (F - t**2 / n)}[kind]
    squares = mf.trace(A, num_probes=4000, kind=kind, seed=1).deviations ** 2
    # 5 standard errors of the mean: a false alarm for one seed in two million.
    assert abs(squares.mean() - exact) <= 5 * squares.std() / np.sqrt(4000)
    W = mf.space_like(A, n).probes(4000, seed=1, kind=kind)
    np.testing.assert_allclose(squares, squared_deviations(A, W, kind), rtol=1e-9)


@pytest.mark.parametrize("method", ["hutch++", "deflated"])
@pytest.mark.parametrize("kind", ["rademacher", "sphere"])
def test_deviations_of_a_residual_are_those_of_the_projected_operator(method, kind):
    A = with_spectrum(nn_spectrum(80))
    options = {"num_probes": 20, "kind": kind, "seed": 3}
    pairs = mf.eigsh(A, 4, rtol=1e-12, seed=0)
    estimate = mf.trace(A, method=method, eigenpairs=pairs, **options)
    if method == "deflated":
        P = np.eye(80) - pairs.vectors @ pairs.vectors.T
        W = mf.space_like(A, 80).probes(20, seed=3, kind=kind)
        expected = squared_deviations(P @ A @ P, W, kind)
        np.testing.assert_allclose(estimate.deviations**2, expected, rtol=1e-8)
    assert len(estimate.deviations) == estimate.num_probes - (kind == "rademacher")
    assert estimate.stderr < mf.trace(A, **options).stderr


def test_the_scatter_is_used_for_operators_that_are_not_hermitian():
    A = symmetric(40)
    for B in (A + np.triu(A, 1), A + 0.01 * np.triu(np.ones((40, 40))), np.eye(40, k=1)):
        estimate = mf.trace(B, num_probes=12, seed=0)
        assert estimate.deviations is None
        assert estimate.degrees_of_freedom == 11
        spread = np.std(estimate.samples, ddof=1) / np.sqrt(12)
        assert estimate.stderr == pytest.approx(spread, rel=1e-12)


def test_one_probe_has_no_interval_and_does_not_count_as_converged():
    for kind in ("rademacher", "gaussian", "sphere"):
        estimate = mf.trace(symmetric(20), num_probes=1, kind=kind, seed=0)
        assert estimate.interval() == (-np.inf, np.inf)
        assert not estimate.converged
    assert mf.trace(symmetric(20), num_probes=2, seed=0).converged


def test_block_size_and_resumption_do_not_change_the_error(tmp_path):
    A = symmetric(50)
    parts = {"a": slice(0, 20), "b": slice(25, 50)}

    def errors(**options):
        path = options.pop("checkpoint", None)
        whole = mf.trace(A, num_probes=options.pop("num_probes", 23), seed=2, **options)
        blocks = mf.block_traces(A, parts, num_probes=23, seed=2, checkpoint=path, **options)
        found = [whole, *blocks.values()]
        return [x for e in found for x in (e.stderr, e.degrees_of_freedom)]

    expected = errors(block_size=23)
    for block_size in (1, 5, 22):
        np.testing.assert_allclose(errors(block_size=block_size), expected, rtol=1e-9)
    for joint in (False, True):
        path = tmp_path / f"{joint}.npz"
        options = {"joint": joint, "seed": 2, "block_size": 4, "num_probes": 23}
        stopped = mf.block_traces(A, parts, checkpoint=path, callback=lambda e: True, **options)
        assert stopped["b"].num_probes < 23
        resumed = mf.block_traces(A, parts, checkpoint=path, **options)
        unbroken = mf.block_traces(A, parts, **options)
        for name in parts:
            assert resumed[name].value == unbroken[name].value
            assert resumed[name].stderr == unbroken[name].stderr


@pytest.mark.parametrize("scale", [1e-150, 1e-60, 1e60, 1e150])
def test_the_error_scales_with_the_operator(scale):
    A = symmetric(30)
    for kind in ("rademacher", "gaussian", "sphere"):
        one, other = (mf.trace(c * A, num_probes=9, kind=kind, seed=0) for c in (1.0, scale))
        assert other.stderr == pytest.approx(scale * one.stderr, rel=1e-9)
        assert other.degrees_of_freedom == pytest.approx(one.degrees_of_freedom, rel=1e-9)
