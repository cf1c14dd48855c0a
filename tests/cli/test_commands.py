"""The commands: their output, their files and their error messages."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from support.matrices import with_spectrum

from matfree.cli import main
from matfree.cli.report.cells import MISSED, rendered
from matfree.cli.report.document import Column, Measured, Table
from matfree.cli.terminal import Terminal

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

SPECTRUM = np.r_[9.0, -5.0, np.linspace(0, 1, 58)]
A = with_spectrum(SPECTRUM)


@pytest.fixture
def matrix(tmp_path):
    path = tmp_path / "A.npy"
    np.save(path, A)
    return path


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as end:  # raised by argparse for --version
        return end.code


def test_matrix_prints_the_main_quantities(matrix, capsys):
    assert run("matrix", matrix, "--exact", "--seed", "0") == 0
    out = capsys.readouterr().out
    for word in ("eigenvalue 1", "trace", "diagonal", "exact", "-5"):
        assert word in out


def test_matrix_writes_a_self_contained_report(matrix, tmp_path, capsys):
    folder = tmp_path / "report"
    assert run("matrix", matrix, "--exact", "--out", folder, "--seed", "0") == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?https?://", page)
    assert "<script src" not in page
    assert page.count('<figure><svg role="img" aria-label=') == len(list(folder.glob("*.png")))
    assert len(page) < 1e6
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    eigenvalues = results["results"]["matrix"]["eigenvalues"]
    assert eigenvalues["values"] == pytest.approx([9.0, -5.0], abs=1e-2)
    low, high = results["results"]["matrix"]["trace"]["interval"]
    assert low < np.trace(A) < high
    assert list(folder.glob("*.png"))


class Tables(HTMLParser):
    """The parts of the tables of a page, in order."""

    def __init__(self, page):
        super().__init__()
        self.parts = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag in ("table", "caption", "th", "tr"):
            self.parts.append((tag, dict(attrs).get("scope")))


def test_tables_have_captions_and_headers_of_rows_and_columns(matrix, tmp_path, capsys):
    folder = tmp_path / "report"
    assert run("matrix", matrix, "--exact", "--out", folder, "--seed", "0") == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    parts = Tables(page).parts
    tables = [j for j, (tag, _) in enumerate(parts) if tag == "table"]
    assert tables
    assert all(parts[j + 1][0] == "caption" for j in tables)
    rows = [j for j, (tag, _) in enumerate(parts) if tag == "tr"]
    assert all(parts[j + 1][1] in ("col", "row") for j in rows)


def test_decimal_points_are_aligned_and_every_no_is_explained():
    columns = Column("estimate"), Column("inside", remark=MISSED)
    rows = (Measured(164.70492, 2.53), True), (Measured(9.25, 0.011), False), (7, True)
    table = Table("Caption:", columns, rows)
    assert [row[0] for row in rendered(table)] == ["164.7  ", "9.250", "7    "]
    stream = io.StringIO()
    Terminal(stream).table(table)
    lines = stream.getvalue().splitlines()
    assert [line.find("yes") for line in lines if "yes" in line] == [12, 12]
    assert "twenty" in stream.getvalue()
    stream = io.StringIO()
    Terminal(stream).table(Table("Caption:", columns, rows[:1]))
    assert "twenty" not in stream.getvalue()


def test_json_output_agrees_with_numpy(matrix, capsys):
    assert run("matrix", matrix, "--exact", "--json", "--seed", "0") == 0
    text = capsys.readouterr().out
    numbers = [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
    json.loads(text)
    for exact in (np.trace(A), 9.0, -5.0):
        assert min(abs(np.array(numbers) - exact)) < 1e-6


@pytest.mark.parametrize("name", ["A.npz", "A.mtx"])
def test_sparse_files_are_read(name, tmp_path, capsys):
    path = tmp_path / name
    if name.endswith("npz"):
        sp.save_npz(path, sp.csr_array(A))
    else:
        scipy.io.mmwrite(path, sp.coo_array(A))
    assert run("matrix", path, "--seed", "0") == 0
    assert "trace" in capsys.readouterr().out


def test_only_trace_and_diagonal_of_a_non_hermitian_matrix_are_estimated(tmp_path, capsys):
    np.save(tmp_path / "J.npy", np.triu(A))
    assert run("matrix", tmp_path / "J.npy", "--seed", "0") == 0
    out = capsys.readouterr()
    assert "trace" in out.out
    assert "Hermitian" in out.out + out.err


def _file(tmp_path, name, array):
    path = tmp_path / name
    np.save(path, array, allow_pickle=True)
    return path


def _damaged(tmp_path, name):
    """A sparse file whose indices are out of range."""
    matrix = sp.csr_array(A).asformat(name)
    matrix.indices[3] = 10**8
    sp.save_npz(tmp_path / f"{name}.npz", matrix)
    return tmp_path / f"{name}.npz"


BAD = {
    "index out of range, csr": lambda d: _damaged(d, "csr"),
    "index out of range, csc": lambda d: _damaged(d, "csc"),
    "no such file": lambda d: d / "absent.npy",
    "another ending": lambda d: _file(d, "A.txt.npy", A).rename(d / "A.csv"),
    "no rows": lambda d: _file(d, "r.npy", A[:0]),
    "one dimension": lambda d: _file(d, "v.npy", A[0]),
    "nan inside": lambda d: _file(d, "n.npy", np.where(np.eye(60) > 0, np.nan, A)),
    "empty": lambda d: _file(d, "e.npy", np.zeros((0, 0))),
    "objects": lambda d: _file(d, "o.npy", np.array([[None]])),
    "no array file": lambda d: (d / "t.npy").write_text("text") and d / "t.npy",
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_bad_files_end_with_one_line_and_exit_status_2(make, tmp_path, capsys):
    assert run("matrix", make(tmp_path)) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_an_unwritable_folder_is_refused(matrix, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run("matrix", matrix, "--out", tmp_path / "file") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_version_is_that_of_the_package(capsys):
    import matfree

    assert run("--version") == 0
    assert matfree.__version__ in capsys.readouterr().out


GOOD_NETWORK = """
import torch
def problem():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    return model, torch.nn.CrossEntropyLoss(), (torch.randn(30, 4), torch.randint(3, (30,)))
def wrong():
    return 3
def broken():
    raise RuntimeError("no weights")
"""


@pytest.fixture
def network(tmp_path, needs_torch):
    path = tmp_path / "net.py"
    path.write_text(GOOD_NETWORK)
    return path


def test_network_reports_on_a_model_from_a_file(network, capsys):
    assert run("network", f"{network}:problem", "--exact", "--seed", "0") == 0
    out = capsys.readouterr().out
    assert "trace" in out
    assert "15" in out  # parameters


@pytest.mark.parametrize(
    "tail", [":wrong", ":broken", ":absent", "", ":problem --device cuda:99"], ids=str
)
def test_bad_networks_end_with_one_line_and_exit_status_2(network, tail, capsys):
    assert run("network", *f"{network}{tail}".split()) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_the_demo_runs_end_to_end(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="the demo's network learns scikit-learn's digits")
    pytest.importorskip("torch", reason="the demo's second half needs torch")
    assert run("demo", "--out", tmp_path / "demo", "--seed", "0") == 0
    out = capsys.readouterr().out
    assert out.count("SUMMARY") >= 2
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert len(page) < 1e6
    assert ("NO" in re.findall(r">(yes|NO)<", page)) == ("in twenty is expected" in page)
    assert not re.search(r"(src|href)=[\"']?https?://", page)
    json.loads((tmp_path / "demo" / "results.json").read_text(encoding="utf-8"))
