"""``matfree matrix`` with matrices that are streamed from their files."""

import json

import numpy as np
import pytest
from support.matrices import with_spectrum

from matfree.cli import main, streams
from matfree.cli.matrix import _reader_code

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

A = with_spectrum(np.r_[9.0, -5.0, np.linspace(0, 1, 58)])


def run(capsys, path, *words):
    status = main(["matrix", str(path), "--seed", "0", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def numbers(capsys, path, *words):
    status, out, err = run(capsys, path, "--json", *words)
    assert status == 0, err
    return json.loads(out)["results"]["matrix"]


def npy(folder, matrix=A):
    np.save(folder / "A.npy", matrix)
    return folder / "A.npy"


def hdf5(folder):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(folder / "A.h5", "w") as file:
        file.create_dataset("part/A", data=A, chunks=(16, 60))
        file["vector"] = A[0]
    return f"{folder / 'A.h5'}:/part/A"


def zarr_folder(folder):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    data = zarr.create_array(store=folder / "A.zarr", shape=A.shape, chunks=(16, 60), dtype="f8")
    data[:] = A
    return folder / "A.zarr"


@pytest.mark.parametrize("made", [npy, hdf5, zarr_folder])
def test_a_streamed_matrix_gives_the_same_numbers_as_one_in_memory(made, tmp_path, capsys):
    path = made(tmp_path)
    streamed, whole = numbers(capsys, path, "--stream"), numbers(capsys, path)
    assert "slabs" in streamed["facts"]["read"]
    assert "memory" in whole["facts"]["read"]
    assert streamed["facts"]["symmetry"] == "symmetric"
    assert streamed["trace"]["value"] == pytest.approx(whole["trace"]["value"])
    assert streamed["trace"]["interval"] == pytest.approx(whole["trace"]["interval"])


@pytest.mark.parametrize("made", [npy, hdf5, zarr_folder])
@pytest.mark.parametrize("stream", [True, False])
def test_the_code_in_the_report_opens_the_file_in_the_same_way(made, stream, tmp_path):
    path = str(made(tmp_path))
    names = {}
    exec("\n".join(_reader_code(path, "", streamed=stream)), names)
    assert names["A"].shape == (60, 60)
    assert isinstance(names["A"], np.ndarray) or stream


def test_a_matrix_that_is_large_compared_with_the_memory_is_streamed_automatically(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(streams, "too_large", lambda num_bytes: num_bytes >= A.nbytes)
    assert "slabs" in numbers(capsys, npy(tmp_path))["facts"]["read"]
    assert "memory" in numbers(capsys, npy(tmp_path, A[:9, :9]))["facts"]["read"]


def test_the_asymmetry_of_a_streamed_matrix_is_detected(tmp_path, capsys):
    path = npy(tmp_path, A + np.eye(60, k=1))
    assert numbers(capsys, path, "--stream")["facts"]["symmetry"] == "not symmetric"


REFUSED = {
    "exact": (lambda d: npy(d), ["--stream", "--exact"], "needs the matrix in memory"),
    "sparse": (lambda d: d / "A.npz", ["--stream"], "--stream is for dense matrices"),
    "nan": (lambda d: npy(d, np.where(np.eye(60) > 0, np.nan, A)), ["--stream"], "NaN or infinity"),
    "no numbers": (lambda d: npy(d, A.astype("U3")), ["--stream"], "not numbers"),
    "absent": (lambda d: d / "B.npy", ["--stream"], "does not exist"),
    "absent hdf5": (lambda d: d / "B.h5", [], "is not a file"),
    "no dataset": (lambda d: hdf5(d).replace("part", "whole"), [], "NAME one of: part/A, vector"),
    "unnamed": (lambda d: hdf5(d).partition(":")[0], [], "needs the name of a dataset"),
    "a vector": (lambda d: hdf5(d).replace("part/A", "vector"), [], "1 dimensions"),
    "no zarr": (lambda d: zarr_folder(d).rename(d / "x") and (d / "B.zarr"), [], "does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_matrices_that_cannot_be_streamed_are_refused_in_one_line(case, tmp_path, capsys):
    made, words, complaint = REFUSED[case]
    status, _, err = run(capsys, made(tmp_path), *words)
    assert status == 2
    assert complaint in err
    assert err.count("\n") == 1
