"""``matfree matrix`` reads the usual formats, and refuses everything else in one line."""

import bz2
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from support.matrices import with_spectrum

from matfree.cli import load, main
from matfree.cli.matrix import _reader_code

SPECTRUM = np.r_[9.0, -5.0, np.linspace(0, 1, 18)]
A = with_spectrum(SPECTRUM)
SPARSE = sp.csr_array(np.where(np.abs(A) > 0.1, A, 0.0))


def compressed(library):
    def write(path):
        scipy.io.mmwrite(path.with_name("plain.mtx"), sp.coo_array(A))
        path.write_bytes(library.compress(path.with_name("plain.mtx").read_bytes()))

    return write


FILES = {  # by name: what writes the file, and the argument if it differs from the path
    "a.npy": lambda path: np.save(path, A),
    "a.npz": lambda path: np.savez(path, A=A),
    "b.npz": lambda path: np.savez(path, other=A[:3], A=A, v=A[0]),
    "a.csv": lambda path: np.savetxt(path, A, delimiter=","),
    "b.csv": lambda path: np.savetxt(path, A, delimiter=",", header="x,y", comments=""),
    "a.mat": lambda path: scipy.io.savemat(path, {"A": A, "v": A[0], "text": "abc"}),
    "b.mat": lambda path: scipy.io.savemat(path, {"A": sp.csc_array(A), "B": A[:3]}),
    "a.mtx": lambda path: scipy.io.mmwrite(path, sp.coo_array(A)),
    "dense.mtx": lambda path: scipy.io.mmwrite(path, A),
    "a.mtx.gz": compressed(gzip),
    "a.mtx.bz2": compressed(bz2),
}
INSIDE = {"b.npz": ":/A", "b.mat": ":/A"}


def run(*words):
    return main([str(word) for word in words])


def run_matrix(capsys, path, *words):
    status = run("matrix", path, "--json", "--seed", "0", *words)
    captured = capsys.readouterr()
    return status, json.loads(captured.out)["results"]["matrix"] if captured.out else captured.err


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read_in_lower_and_upper_case(name, upper, tmp_path, capsys):
    path = tmp_path / name
    FILES[name](path)
    if upper:
        path = path.rename(tmp_path / name.upper())
    target = f"{path}{INSIDE.get(name, '')}"
    status, found = run_matrix(capsys, target)
    assert status == 0, found
    assert found["eigenvalues"]["values"] == pytest.approx([9.0, -5.0], abs=1e-2)
    names = {}
    exec("\n".join(_reader_code(target, load.read_matrix(target)[1], streamed=False)), names)
    again = names["A"].toarray() if sp.issparse(names["A"]) else names["A"]
    np.testing.assert_allclose(again, A, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (1, 5)])
@pytest.mark.parametrize("kind", ["real", "complex", "sparse"])
def test_singular_values_of_a_rectangular_file(kind, shape, tmp_path, capsys):
    g = np.random.default_rng(0)
    M = g.standard_normal(shape) + (1j * g.standard_normal(shape) if kind == "complex" else 0)
    path = tmp_path / ("M.npz" if kind == "sparse" else "M.npy")
    if kind == "sparse":
        sp.save_npz(path, sp.csr_array(M))
    else:
        np.save(path, M)
    status, found = run_matrix(capsys, path, "--exact")
    assert status == 0, found
    exact = np.linalg.svd(M, compute_uv=False)[:2]
    np.testing.assert_allclose(found["singular_values"]["values"], exact, rtol=1e-6)
    np.testing.assert_allclose(found["singular_values"]["exact"], exact, rtol=1e-12)
    assert run("matrix", path, "--exact", "--seed", "0") == 0
    assert "NO" not in capsys.readouterr().out.split("SUMMARY")[1]


def test_an_unmet_tolerance_is_the_exit_status(tmp_path, capsys):
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "R.npy", A[:, :15])
    for name in ("A.npy", "R.npy"):
        assert run("matrix", tmp_path / name, "--rtol", "1e-9", "--max-matvecs", "10") == 3
        assert "the tolerance was not met for" in capsys.readouterr().err
        assert run("matrix", tmp_path / name, "--rtol", "0.9") == 0
        assert run("matrix", tmp_path / name, "--num-probes", "2") == 0
    with pytest.raises(SystemExit):
        run("matrix", "--help")
    assert "3 if the tolerance --rtol was not met" in " ".join(capsys.readouterr().out.split())


def test_a_positive_semidefinite_matrix_has_no_negative_eigenvalues(tmp_path, capsys):
    """The zeros of a Gram matrix have either sign in LAPACK."""
    X = np.random.default_rng(0).standard_normal((80, 5))
    for seed, gram in enumerate((X @ X.T, np.float32(X @ X.T), 1e-8 * (X @ X.T))):
        np.save(tmp_path / "gram.npy", gram)
        assert run("matrix", tmp_path / "gram.npy", "--exact", "--seed", seed) == 0
        summary = capsys.readouterr().out.split("SUMMARY")[1]
        (share,) = (line for line in summary.splitlines() if "fraction of negative" in line)
        assert "NO" not in share
    np.save(tmp_path / "A.npy", A)
    status, found = run_matrix(capsys, tmp_path / "A.npy", "--exact")
    assert status == 0
    assert found["spectral_density"]["exact_negative_fraction"] == 1 / 20


ENDINGS = (".npy", ".npz", ".mtx", ".mtx.gz", ".mtx.bz2", ".csv", ".mat", ".h5:/A", ".zarr", ".txt")
CONTENTS = {
    "nothing": b"",
    "text": b"abc\n",
    "bytes": np.random.default_rng(0).bytes(200),
    "bad indices": b"%%MatrixMarket matrix coordinate real general\n3 3 1\n9 9 1\n",
    "ragged": b"1,2\n3\n",
    "gzip": gzip.compress(b"xx"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_file_ends_with_a_traceback(ending, tmp_path, capsys):
    pytest.importorskip("h5py", reason="h5py is not installed")
    for name, content in CONTENTS.items():
        file = tmp_path / f"{name}{ending.partition(':')[0]}"
        file.write_bytes(content)
        status = run("matrix", f"{tmp_path / name}{ending}")
        error = capsys.readouterr().err.strip()
        assert status == 2
        assert len(error.splitlines()) == 1
        assert error.startswith("matfree: ")


def test_a_file_with_several_matrices_asks_for_a_name(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", A=A, B=A)
    for words, match in ((("two.npz",), "contains 2 matrices"), (("two.npz:/C",), "no matrix C")):
        assert run("matrix", tmp_path / words[0]) == 2
        assert f"{match}; write" in (error := capsys.readouterr().err)
        assert "one of: A, B" in error


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, NoTorch())
from matfree.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "words", [["m.py:f"], ["--help"], ["m.py:f", "--num-probes", "3"], []], ids=str
)
def test_without_torch_the_command_network_names_what_to_install(words, needs_torch):
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "network", *words], capture_output=True, text=True
    )
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "pip install torch" in answer.stderr


def test_without_torch_the_other_commands_work(needs_torch):
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "--help"], capture_output=True, text=True
    )
    assert answer.returncode == 0
    assert "not available" in answer.stdout
