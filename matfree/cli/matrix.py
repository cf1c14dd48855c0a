"""``matfree matrix FILE``: all there is to say of an explicit matrix."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from matfree import checks
from matfree.cli import load, options, sections, streams
from matfree.cli.failure import CommandError
from matfree.cli.report.document import Chapter, Notebook
from matfree.cli.session import conduct
from matfree.cli.study import Study
from matfree.errors import NonFiniteError
from matfree.operators import SlabOperator, aslinearoperator


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "matrix",
        help="eigenvalues, trace, diagonal and spectral density of a matrix in a file",
        description="Top eigenvalues, trace, diagonal and spectral density of a square matrix. "
        "One that is not Hermitian has its trace and diagonal estimated only.",
    )
    parser.add_argument("file", metavar="FILE", help=", ".join(load.ACCEPTED))
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read a dense matrix as it is multiplied, instead of once into memory (that is done "
        "anyway where it is large beside the memory)",
    )
    options.add_budget(parser)
    options.add_out(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Study the matrix in the file."""
    matrix = load.matrix(given.file, stream=given.stream)
    settings = options.settings(given, matrix.shape[0])
    operator = aslinearoperator(matrix)
    streamed = isinstance(operator, SlabOperator)
    if streamed and given.exact:
        raise CommandError(
            "--exact needs the matrix in memory, and it is streamed; leave --exact out"
        )
    name = Path(given.file).name

    def work(notebook: Notebook) -> None:
        defect = checks.asymmetry(operator) if streamed else asymmetry(matrix)
        hermitian = _agrees(defect, tolerance(operator.dtype if streamed else matrix.dtype))
        notebook.open(_chapter(given.file, matrix, hermitian=hermitian, streamed=streamed))
        study = Study(operator, "A", "matrix", settings, hermitian=hermitian)
        if given.exact:
            study = study.with_exact(_dense(matrix))
        if not hermitian:
            notebook.note(
                "A is not Hermitian, so only its trace and diagonal are estimated; A.T @ A, whose "
                "eigenvalues are the squared singular values, would be."
            )
        sections.write(study, notebook)

    return conduct(given, f"The matrix {name}", work)


def _agrees(defect: float, limit: float) -> bool:
    """Whether a defect is within the limit; what is no number says nothing good of A."""
    if not math.isfinite(defect):
        raise NonFiniteError("a product of A holds NaN or infinity; mend the file first.")
    return defect <= limit


def asymmetry(matrix: Any) -> float:
    """The largest |a_ij - conj(a_ji)| relative to the largest |a_ij|."""
    wide = matrix.astype(np.result_type(matrix.dtype, np.float64))  # unsigned ones wrap around
    largest = abs(wide).max()
    return float(abs(wide - wide.conj().T).max() / largest) if largest > 0 else 0.0


def tolerance(dtype: Any) -> float:
    """The asymmetry that rounding explains: eps^(2/3), as for ``check_operator``."""
    kind = np.dtype(dtype)
    return float(np.finfo(kind).eps ** (2 / 3)) if kind.kind in "fc" else 0.0


def _chapter(file: str, matrix: Any, *, hermitian: bool, streamed: bool) -> Chapter:
    n = matrix.shape[0]
    sparse = scipy.sparse.issparse(matrix)
    kind = "Hermitian" if matrix.dtype.kind == "c" else "symmetric"
    stored = f"sparse, {matrix.nnz:,} entries stored" if sparse else "dense"
    imports, reader = _reader(file, streamed=streamed)
    size = matrix.dtype.itemsize * n * n / 1e6
    read = f"in slabs, {size:,.0f} MB a block of vectors" if streamed else "once, into memory"
    return Chapter(
        key="matrix",
        title=f"The matrix {Path(file).name}",
        text=(),
        code=f"{imports}\nimport matfree as mf\n{reader}",
        facts=(
            ("file", file),
            ("shape", f"{n} x {n}, {matrix.dtype}"),
            ("stored", stored),
            ("read", read),
            ("symmetry", kind if hermitian else f"not {kind}"),
        ),
    )


def _reader(file: str, *, streamed: bool) -> tuple[str, str]:
    """The imports, and the line of Python that reads the matrix."""
    sparse = {
        ".npz": f"A = scipy.sparse.load_npz({file!r})",
        ".mtx": f"A = scipy.sparse.csr_array(scipy.io.mmread({file!r}, spmatrix=False))",
    }
    if Path(file).suffix in sparse:
        return "import scipy.io, scipy.sparse", sparse[Path(file).suffix]
    if streamed or streams.is_container(file):
        imports, line = streams.reader(file)
        return imports, line if streamed else f"{line}[:]"
    return "import numpy as np", f"A = np.load({file!r})"


def _dense(matrix: Any) -> np.ndarray[Any, Any]:
    return np.asarray(matrix.toarray() if scipy.sparse.issparse(matrix) else matrix)
