"""Explicit matrices from files, looked at before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from matfree.cli.failure import CommandError, one_line

ENDINGS = (".npy", ".npz", ".mtx")


def matrix(path: str) -> Any:
    """A square matrix of finite numbers: a NumPy array, or a SciPy CSR array.

    Parameters
    ----------
    path : str
        ``.npy`` (numpy.save), ``.npz`` (scipy.sparse.save_npz) or ``.mtx`` (Matrix Market).

    Raises
    ------
    CommandError
        The file is not there, is not such a file, or holds something else.
    """
    file = Path(path)
    if file.suffix not in ENDINGS:
        raise CommandError(
            f"{path} has none of the endings {', '.join(ENDINGS)}: save a dense matrix with "
            "numpy.save, a sparse one with scipy.sparse.save_npz or scipy.io.mmwrite"
        )
    if not file.is_file():
        raise CommandError(f"{path} is not a file; check the path")
    loaded = _read(file)
    _require_square(loaded, path)
    return _require_finite(loaded, path)


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if file.suffix == ".npz":
            return scipy.sparse.load_npz(file)
        return scipy.io.mmread(file, spmatrix=False)
    except Exception as cause:  # whatever a parser may say of unknown bytes
        hint = {
            ".npy": "it must be one numeric array, saved with numpy.save",
            ".npz": "it must be a sparse matrix, saved with scipy.sparse.save_npz; "
            "save a dense one with numpy.save",
            ".mtx": "it must be in Matrix Market format",
        }[file.suffix]
        reason = one_line(cause).split(". ")[0]  # what follows is advice to programmers
        raise CommandError(f"cannot read {file}: {hint} ({reason})") from cause


def _require_square(loaded: Any, path: str) -> None:
    if loaded.ndim != 2:
        raise CommandError(f"{path} holds {loaded.ndim} dimensions where a matrix has 2")
    m, n = loaded.shape
    if m != n:
        raise CommandError(
            f"{path} is {m} x {n}, and only square matrices have a trace and eigenvalues: "
            "for singular values, save A.T @ A"
        )
    if n == 0:
        raise CommandError(f"{path} is empty: its shape is (0, 0)")


def _require_finite(loaded: Any, path: str) -> Any:
    """The matrix in a type that products are made in."""
    if loaded.dtype.kind not in "biufc":
        raise CommandError(f"{path} holds {loaded.dtype}, not numbers; convert it first")
    sparse = scipy.sparse.issparse(loaded)
    matrix = scipy.sparse.csr_array(loaded) if sparse else loaded
    if matrix.dtype.itemsize > (16 if matrix.dtype.kind == "c" else 8):
        matrix = matrix.astype(np.complex128 if matrix.dtype.kind == "c" else np.float64)
    bad = np.argwhere(~np.isfinite(matrix.data if sparse else matrix))
    if len(bad):
        where = _position(matrix, bad[0]) if sparse else bad[0]
        raise CommandError(
            f"{path} holds NaN or infinity in {len(bad)} places, first in row {where[0]}, "
            f"column {where[1]} (counted from 0); mend it first"
        )
    return matrix


def _position(matrix: Any, index: Any) -> tuple[int, int]:
    """Row and column of an entry of a CSR array's data."""
    (entry,) = index
    return int(np.searchsorted(matrix.indptr, entry, side="right")) - 1, int(matrix.indices[entry])
