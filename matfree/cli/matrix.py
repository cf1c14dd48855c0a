"""``matfree matrix FILE``: the spectrum, trace and diagonal of a matrix in a file."""

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
from matfree.cli.report.document import Chapter, ReportBuilder
from matfree.cli.session import run_and_report
from matfree.cli.study import Study
from matfree.errors import NonFiniteError
from matfree.operators import SlabOperator, aslinearoperator


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "matrix",
        help="eigenvalues, trace, diagonal and spectral density of a matrix in a file",
        description="Estimates the largest eigenvalues, trace, diagonal and spectral density of "
        "a square matrix; if it is not Hermitian, only its trace and diagonal; and the largest "
        "singular values and the Frobenius norm of a rectangular one.",
        epilog=options.EXIT_STATUS,
    )
    parser.add_argument("file", metavar="FILE", help=", ".join(load.ACCEPTED))
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read a dense matrix from its file in every matvec, instead of once into memory (the "
        "default for matrices that are large compared with the memory)",
    )
    options.add_budget(parser)
    options.add_out(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Estimate and report the properties of the matrix in the file."""
    matrix, code = load.read_matrix(given.file, stream=given.stream)
    settings = options.settings(given, min(matrix.shape))
    operator = aslinearoperator(matrix)
    streamed = isinstance(operator, SlabOperator)
    if streamed and given.exact:
        raise CommandError(
            "--exact needs the matrix in memory, and this one is streamed; omit --exact"
        )
    name = Path(given.file).name

    def work(report: ReportBuilder) -> None:
        if matrix.shape[0] != matrix.shape[1]:
            report.add_chapter(_matrix_chapter(given.file, code, matrix, streamed=streamed))
            study = Study(operator, "A", "matrix", settings, hermitian=False)
            if given.exact:
                study = study.with_exact(_dense(matrix))
            sections.add_sections(study, report)
            return
        # A streamed matrix is tested by matvecs with random vectors, one in memory entry by entry.
        defect = checks.asymmetry(operator) if streamed else entry_asymmetry(matrix)
        hermitian = _within(defect, tolerance(operator.dtype if streamed else matrix.dtype))
        report.add_chapter(
            _matrix_chapter(given.file, code, matrix, hermitian=hermitian, streamed=streamed)
        )
        study = Study(operator, "A", "matrix", settings, hermitian=hermitian)
        if given.exact:
            study = study.with_exact(_dense(matrix))
        if not hermitian:
            report.add_note(
                "A is not Hermitian, so only its trace and diagonal are estimated. For its "
                "singular values, use mf.svds(A)."
            )
        sections.add_sections(study, report)

    return run_and_report(given, f"The matrix {name}", work)


def _within(defect: float, limit: float) -> bool:
    """Whether the asymmetry is within the limit; NaN and infinity are refused."""
    if not math.isfinite(defect):
        raise NonFiniteError(
            "a matvec with A holds NaN or infinity; fix the entries of the matrix first."
        )
    return defect <= limit


def entry_asymmetry(matrix: Any) -> float:
    """The largest |a_ij - conj(a_ji)| relative to the largest |a_ij|."""
    wide = matrix.astype(
        np.result_type(matrix.dtype, np.float64)
    )  # unsigned integers would wrap around
    largest = abs(wide).max()
    return float(abs(wide - wide.conj().T).max() / largest) if largest > 0 else 0.0


def tolerance(dtype: Any) -> float:
    """The largest asymmetry that rounding may cause: eps^(2/3), as in ``check_operator``."""
    kind = np.dtype(dtype)
    return float(np.finfo(kind).eps ** (2 / 3)) if kind.kind in "fc" else 0.0


def _matrix_chapter(
    file: str, code: str, matrix: Any, *, streamed: bool, hermitian: bool | None = None
) -> Chapter:
    """The chapter on a matrix; ``hermitian`` is None for a rectangular one."""
    m, n = matrix.shape
    sparse = scipy.sparse.issparse(matrix)
    kind = "Hermitian" if matrix.dtype.kind == "c" else "symmetric"
    stored = f"sparse, {matrix.nnz:,} entries stored" if sparse else "dense"
    imports, reader = _reader_code(file, code, streamed=streamed)
    symmetry = "rectangular" if hermitian is None else kind if hermitian else f"not {kind}"
    size = matrix.dtype.itemsize * m * n / 1e6
    read = (
        f"in slabs, {size:,.0f} MB for each block of vectors" if streamed else "once, into memory"
    )
    return Chapter(
        key="matrix",
        title=f"The matrix {Path(file).name}",
        text=(),
        code=f"{imports}\nimport matfree as mf\n{reader}",
        facts=(
            ("file", file),
            ("shape", f"{m} x {n}, {matrix.dtype}"),
            ("stored", stored),
            ("read", read),
            ("symmetry", symmetry),
        ),
    )


def _reader_code(file: str, code: str, *, streamed: bool) -> tuple[str, str]:
    """The imports and the line of Python that read the matrix."""
    if code:
        libraries = ("gzip", "bz2", "scipy.io", "scipy.sparse")
        names = [name for name in libraries if f"{name}." in code]
        return f"import {', '.join(names or ['numpy as np'])}", code
    imports, line = streams.reader_code(file)
    return imports, line if streamed else f"{line}[:]"


def _dense(matrix: Any) -> np.ndarray[Any, Any]:
    return np.asarray(matrix.toarray() if scipy.sparse.issparse(matrix) else matrix)
