"""``matfree matrix FILE``: all there is to say of an explicit matrix."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from matfree.cli import load, options, sections
from matfree.cli.report import Chapter, Notebook
from matfree.cli.session import conduct
from matfree.cli.study import Study
from matfree.operators import aslinearoperator


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "matrix",
        help="eigenvalues, trace, diagonal and spectral density of a matrix in a file",
        description="Top eigenvalues, trace, diagonal and spectral density of a square matrix. "
        "One that is not Hermitian has its trace and diagonal estimated only.",
    )
    parser.add_argument("file", metavar="FILE", help=", ".join(load.ENDINGS))
    options.add_budget(parser)
    options.add_out(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Study the matrix in the file."""
    matrix = load.matrix(given.file)
    settings = options.settings(given, matrix.shape[0])
    name = Path(given.file).name

    def work(notebook: Notebook) -> None:
        hermitian = asymmetry(matrix) <= tolerance(matrix)
        notebook.open(_chapter(given.file, matrix, hermitian))
        study = Study(aslinearoperator(matrix), "A", "matrix", settings, hermitian=hermitian)
        if given.exact:
            study = study.with_exact(_dense(matrix))
        if not hermitian:
            notebook.note(
                "A is not Hermitian, so only its trace and diagonal are estimated; A.T @ A, whose "
                "eigenvalues are the squared singular values, would be."
            )
        sections.write(study, notebook)

    return conduct(given, f"The matrix {name}", work)


def asymmetry(matrix: Any) -> float:
    """The largest |a_ij - conj(a_ji)| relative to the largest |a_ij|."""
    wide = matrix.astype(np.result_type(matrix.dtype, np.float64))  # unsigned ones wrap around
    largest = abs(wide).max()
    return float(abs(wide - wide.conj().T).max() / largest) if largest > 0 else 0.0


def tolerance(matrix: Any) -> float:
    """The asymmetry that rounding explains: eps^(2/3), as for ``check_operator``."""
    exact = matrix.dtype.kind not in "fc"
    return 0.0 if exact else float(np.finfo(matrix.dtype).eps ** (2 / 3))


def _chapter(file: str, matrix: Any, hermitian: bool) -> Chapter:
    n = matrix.shape[0]
    sparse = scipy.sparse.issparse(matrix)
    kind = "Hermitian" if matrix.dtype.kind == "c" else "symmetric"
    stored = f"sparse, {matrix.nnz:,} entries stored" if sparse else "dense"
    reader = {
        ".npy": f"A = np.load({file!r})",
        ".npz": f"A = scipy.sparse.load_npz({file!r})",
        ".mtx": f"A = scipy.sparse.csr_array(scipy.io.mmread({file!r}, spmatrix=False))",
    }[Path(file).suffix]
    imports = "import numpy as np" if not sparse else "import scipy.io, scipy.sparse"
    return Chapter(
        key="matrix",
        title=f"The matrix {Path(file).name}",
        text=(),
        code=f"{imports}\nimport matfree as mf\n{reader}",
        facts=(
            ("file", file),
            ("shape", f"{n} x {n}, {matrix.dtype}"),
            ("stored", stored),
            ("symmetry", kind if hermitian else f"not {kind}"),
        ),
    )


def _dense(matrix: Any) -> np.ndarray[Any, Any]:
    return np.asarray(matrix.toarray() if scipy.sparse.issparse(matrix) else matrix)
