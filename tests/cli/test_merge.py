"""``matfree merge``: jobs over different probes are merged, and other results refused."""

import numpy as np
import pytest
from support.backends import assert_close
from support.intervals import error_of_runs
from support.matrices import with_spectrum

import matfree as mf
from matfree.cli import main

A = with_spectrum(np.r_[9.0, -5.0, np.linspace(0, 1, 58)])


def merge(*words):
    return main(["merge", *map(str, words)])


@pytest.fixture
def saved(tmp_path):
    """A function that saves results under numbered names and returns the paths."""

    def save(*results):
        return [result.save(tmp_path / f"job{i}.npz") for i, result in enumerate(results)]

    return save


JOBS = ((20, 5), (0, 16), (16, 4))  # first probe and number, in no order


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (mf.trace, {}),
        (mf.trace_function, {"f": "exp", "num_steps": 10}),
        (mf.spectral_density, {"num_steps": 12}),
    ],
    ids=["trace", "trace_function", "spectral_density"],
)
def test_jobs_over_probe_ranges_merge_to_the_one_run(function, parts, saved, tmp_path, capsys):
    jobs = [function(A, **parts, num_probes=n, first_probe=f, seed=3) for f, n in JOBS]
    whole = function(A, **parts, num_probes=25, seed=3)
    assert merge(*saved(*jobs), "-o", tmp_path / "all.npz") == 0
    merged = mf.load(tmp_path / "all.npz")
    assert str(merged) in capsys.readouterr().out
    assert merged.probe_ranges == whole.probe_ranges == ((0, 25),)
    assert merged.num_matvecs == whole.num_matvecs
    if function is mf.spectral_density:
        for name in ("nodes", "weights"):
            for got, expected in zip(getattr(merged, name), getattr(whole, name), strict=True):
                assert_close(got, expected)
        merged, whole = merged.moment(2), whole.moment(2)
    assert_close(merged.samples, whole.samples)
    if function is mf.trace:  # the probes of every job give its diagonal
        W = mf.aslinearoperator(A).space.probes(25, seed=3)
        _, _, half = error_of_runs(np.asarray(A), W[:, :16], W[:, 16:20], W[:, 20:])
        assert merged.half_width() == pytest.approx(half, rel=1e-8)
    else:
        assert_close(merged.half_width() - merged.bias, whole.half_width() - whole.bias)
    assert merged.bias >= whole.bias  # each job bounds its own


def test_diagonals_merge_with_their_standard_errors(saved, tmp_path):
    jobs = [mf.diagonal(A, num_probes=n, first_probe=f, seed=3) for f, n in JOBS]
    assert merge(*saved(*jobs), "--out", tmp_path / "all") == 0
    merged, whole = mf.load(tmp_path / "all.npz"), mf.diagonal(A, num_probes=25, seed=3)
    assert_close(merged.value, whole.value)
    assert_close(merged.stderr, whole.stderr)


@pytest.mark.parametrize("function", [mf.trace, mf.diagonal, mf.spectral_density])
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"first_probe": 10}, "probes 10 to 19 occur in two of the runs"),
        ({"seed": 2}, "only runs with the same seed"),
        ({"A": A[:50, :50]}, "only runs with the same size"),
        ({"A": A + 7 * np.eye(60)}, "of different operators"),
        ({"kind": "gaussian"}, "only runs with the same kind"),
    ],
    ids=["overlap", "seed", "size", "operator", "kind"],
)
def test_results_of_different_runs_are_refused(function, changes, complaint, saved, capsys):
    options = {"A": A, "num_probes": 20, "first_probe": 0, "seed": 1}
    options |= {"num_steps": 8} if function is mf.spectral_density else {}
    jobs = [function(**options), function(**(options | {"first_probe": 20} | changes))]
    assert merge(*saved(*jobs)) == 2
    assert complaint in capsys.readouterr().err


def test_runs_of_one_operator_are_never_refused():
    # With random signs every sample takes one of two values: half of all short runs disagree.
    coin = np.diag([3.0, 3.0, 3.0])
    coin[0, 1] = coin[1, 0] = 1.0
    for first in range(0, 640, 32):
        parts = [mf.trace(coin, num_probes=16, first_probe=first + f, seed=0) for f in (0, 16)]
        assert parts[0].merge(parts[1]).num_probes == 32
        few = [mf.trace(coin, num_probes=2, first_probe=first + f, seed=0) for f in (0, 2)]
        assert few[0].merge(few[1]).num_probes == 4


def test_files_that_hold_something_else_are_refused(saved, tmp_path, capsys):
    eigen, trace, density = saved(
        mf.eigsh(A, 2, seed=0),
        mf.trace(A, num_probes=2, seed=0),
        mf.spectral_density(A, num_probes=2, num_steps=4, seed=0),
    )
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    for words, complaint in [
        ((eigen, trace), "of type EigenResult; only estimates and spectral densities"),
        ((trace, density), "pass results of one type"),
        ((trace, tmp_path / "foreign.npz"), "is not a file that matfree wrote"),
        ((trace, tmp_path / "absent.npz"), "is not a file; check the path"),
        ((trace, "-o", tmp_path / "nowhere" / "all.npz"), "cannot write"),
    ]:
        assert merge(*words) == 2
        assert complaint in capsys.readouterr().err
