"""Results are frozen, can be printed, saved and loaded, and have correct intervals."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.linalg
from support.backends import assert_close
from support.matrices import with_spectrum

import matfree as mf
from matfree.arrays import to_host
from matfree.results import record
from matfree.results.tridiagonal import tridiagonal_eigenpairs

A = with_spectrum(np.linspace(1, 3, 30))


def everything(matrix):
    start = mf.aslinearoperator(matrix).space.probes(2, seed=0)
    return [
        mf.trace(matrix, num_probes=5, seed=0),
        mf.trace(matrix, max_matvecs=30),
        mf.diagonal(matrix, num_probes=5, seed=0),
        mf.eigsh(matrix, 2, seed=0),
        mf.spectral_density(matrix, num_probes=2, num_steps=5, seed=0),
        mf.lanczos(matrix, start, 4),
        mf.check_operator(matrix),
    ]


def test_every_result_survives_saving_and_loading(backend, tmp_path):
    for j, result in enumerate(everything(backend.asarray(A))):
        loaded = mf.load(result.save(tmp_path / f"result-{j}"))
        assert type(loaded) is type(result)
        assert str(loaded) == str(result)
        for field in dataclasses.fields(result):
            old, new = getattr(result, field.name), getattr(loaded, field.name)
            if isinstance(old, tuple) and old and hasattr(old[0], "shape"):
                for a, b in zip(old, new, strict=True):
                    assert np.array_equal(to_host(a), b)
            elif hasattr(old, "__dlpack__"):
                assert np.array_equal(to_host(old), new)
            else:
                assert old == new


def test_complex_values_survive_saving_and_loading(tmp_path):
    estimate = mf.trace(A * (1 + 2j), num_probes=3, seed=0)
    assert mf.Estimate.load(estimate.save(tmp_path / "c.npz")).value == estimate.value


def test_a_file_of_another_kind_or_a_truncated_file_is_refused(tmp_path):
    path = mf.trace(A, num_probes=2, seed=0).save(tmp_path / "trace")
    with pytest.raises(ValueError, match="holds a result of kind Estimate, not EigenResult"):
        mf.EigenResult.load(path)
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(path.read_bytes()[:200])
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, x=np.ones(3))
    for bad in (truncated, foreign):
        with pytest.raises(ValueError, match="not a file that matfree wrote"):
            mf.load(bad)
    with pytest.raises(FileNotFoundError):
        mf.load(tmp_path / "absent.npz")


def test_an_unknown_kind_of_result_is_named(tmp_path, monkeypatch):
    path = mf.trace(np.eye(3), num_probes=1, seed=0).save(tmp_path / "trace")
    monkeypatch.delitem(record._KINDS, "Estimate")
    with pytest.raises(ValueError, match="of kind Estimate, which no imported package defines"):
        mf.load(path)


def test_a_failed_save_leaves_the_old_file_and_no_temporary_file(tmp_path, monkeypatch):
    result = mf.trace(A, num_probes=2, seed=0)
    path = result.save(tmp_path / "trace")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        result.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_results_are_frozen_and_print_as_tables():
    for result in everything(A):
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.num_matvecs = 0
        assert len(str(result).splitlines()) >= 3
        assert result._repr_html_().startswith("<table>")


def test_an_estimate_converts_to_a_number_if_it_is_one():
    estimate = mf.trace(A, num_probes=4, seed=0)
    assert float(estimate) == estimate.value
    assert complex(estimate) == estimate.value
    with pytest.raises(TypeError, match="is an array"):
        float(mf.diagonal(A, num_probes=4, seed=0))
    with pytest.raises(TypeError, match="is complex"):
        float(mf.trace(1j * A, num_probes=4, seed=0))
    assert float(mf.trace(A.astype(complex), num_probes=4, seed=0)) == pytest.approx(estimate.value)


def test_the_interval_is_that_of_students_t():
    estimate = mf.trace(A + np.eye(30, k=1), num_probes=5, seed=0)  # not symmetric
    low, high = estimate.interval(0.99)
    t_of_4_at_99_percent = 4.604094871
    assert high - estimate.value == pytest.approx(t_of_4_at_99_percent * estimate.stderr)
    assert low + high == pytest.approx(2 * estimate.value)
    with pytest.raises(ValueError, match="level must be in"):
        estimate.interval(95)


def test_the_interval_of_one_probe_is_infinite_and_that_of_an_exact_answer_empty():
    assert mf.trace(A, num_probes=1, seed=0).interval() == (-np.inf, np.inf)
    exact = mf.trace(A, max_matvecs=30)
    assert exact.interval() == (exact.value, exact.value)


def test_diagonals_are_arrays_of_the_operators_library(backend):
    estimate = mf.diagonal(backend.asarray(A), num_probes=9, seed=0)
    assert type(estimate.value) is type(backend.asarray(A))
    assert_close(estimate.value, mf.diagonal(A, num_probes=9, seed=0).value)
    low, high = estimate.interval()
    assert bool(backend.xp.all(low <= high))


def test_foreign_and_forged_files_are_refused(tmp_path):
    """Whatever is in the file, ``load`` and ``checkpoint=`` raise a ValueError that names it."""
    A = np.eye(5) + 1
    whole = mf.trace(A, num_probes=3, seed=0).save(tmp_path / "whole").read_bytes()
    matrix = tmp_path / "matrix.npy"
    np.save(matrix, A)

    def forged(kind, fields, **arrays):
        header = json.dumps({"format": 1, "kind": kind, "fields": fields})
        return lambda path: np.savez(path, header=np.array(header), **arrays)

    files = {
        "text": lambda path: path.write_text("a,b\n1,2\n"),
        "empty": lambda path: path.write_bytes(b""),
        "array": lambda path: path.write_bytes(matrix.read_bytes()),
        "arrays": lambda path: np.savez(path, A=A),
        "pickle": lambda path: np.savez(path, header=np.array([{"a": 1}], dtype=object)),
        "truncated": lambda path: path.write_bytes(whole[: len(whole) // 2]),
        "no fields": forged("Estimate", {}),
        "wrong types": forged("Estimate", dict.fromkeys(fields_of(mf.Estimate), "abc")),
        "no eigenvalues": forged("EigenResult", dict.fromkeys(fields_of(mf.EigenResult))),
        "empty checkpoint": forged("checkpoint", {}),
        "list as header": lambda path: np.savez(path, header=np.array("[1, 2]")),
    }
    for name, write in files.items():
        path = tmp_path / f"{name}.npz"
        write(path)
        with pytest.raises(ValueError, match=name):
            mf.load(path)
        with pytest.raises(ValueError, match=name):
            mf.trace(A, num_probes=3, seed=0, checkpoint=path)
    with pytest.raises(ValueError, match=r"matrix.npy is not a file that matfree wrote"):
        mf.load(tmp_path / "matrix.npy")


def fields_of(record):
    return [field.name for field in dataclasses.fields(record)]


def test_a_tridiagonal_matrix_on_which_the_solver_fails_is_solved_as_a_dense_one(monkeypatch):
    rng = np.random.default_rng(0)
    alphas, betas = rng.standard_normal(30), rng.standard_normal(29)
    dense = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)

    def failing(*matrix):
        raise np.linalg.LinAlgError("stevd did not converge")

    monkeypatch.setattr(scipy.linalg, "eigh_tridiagonal", failing)
    values, vectors = tridiagonal_eigenpairs(alphas, betas)
    np.testing.assert_allclose(dense @ vectors, vectors * values, atol=1e-13 * 30)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(30), atol=1e-13)
    assert (np.diff(values) > 0).all()
