"""Explicit matrices from files, looked at before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from matfree.cli import streams
from matfree.cli.failure import CommandError, one_line

ENDINGS = (".npy", ".npz", ".mtx")


ACCEPTED = (*ENDINGS, "FILE.h5:/NAME", ".zarr")


def matrix(path: str, *, stream: bool = False) -> Any:
    """A square matrix: a NumPy array or a SciPy CSR array of finite numbers, or something
    that is read as it is multiplied, of which only the shape and type were looked at.

    Parameters
    ----------
    path : str
        ``.npy`` (numpy.save), ``.npz`` (scipy.sparse.save_npz), ``.mtx`` (Matrix Market),
        ``FILE.h5:/NAME`` (a dataset of an HDF5 file) or a ``.zarr`` directory.
    stream : bool
        Leave it in the file; what is large beside the machine's memory is left there anyway.

    Raises
    ------
    CommandError
        The file is not there, is not such a file, or holds something else.
    """
    file = Path(path)
    if streams.is_container(path) or (stream and file.suffix == ".npy"):
        return _streamable(streams.opened(path), path, stream=stream)
    if file.suffix not in ENDINGS:
        raise CommandError(
            f"{path} has none of the endings {', '.join(ACCEPTED)}: save a dense matrix with "
            "numpy.save, a sparse one with scipy.sparse.save_npz or scipy.io.mmwrite"
        )
    if stream:
        raise CommandError(f"--stream is for dense matrices; {path} is read whole, so leave it out")
    if not file.is_file():
        raise CommandError(f"{path} is not a file; check the path")
    if file.suffix == ".npy" and streams.too_large(file.stat().st_size):
        return _streamable(streams.opened(path), path, stream=True)
    loaded = _read(file)
    _require_square(loaded, path)
    return _require_finite(loaded, path)


def _streamable(source: Any, path: str, *, stream: bool) -> Any:
    """The matrix left in its file, or in memory where it is small there and nobody objects."""
    _require_square(source, path)
    _require_numbers(source, path)
    num_bytes = source.dtype.itemsize * source.shape[0] * source.shape[1]
    if stream or streams.too_large(num_bytes):
        return source
    return _require_finite(np.asarray(source[:]), path)


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


def _require_numbers(loaded: Any, path: str) -> None:
    if loaded.dtype.kind not in "biufc":
        raise CommandError(f"{path} holds {loaded.dtype}, not numbers; convert it first")


def _require_finite(loaded: Any, path: str) -> Any:
    """The matrix in a type that products are made in."""
    _require_numbers(loaded, path)
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
