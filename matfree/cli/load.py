"""Explicit matrices from files, checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse

from matfree.cli import streams
from matfree.cli.failure import CommandError, one_line
from matfree.errors import OperatorError
from matfree.operators.csr import require_valid_indices

ENDINGS = (".npy", ".npz", ".mtx")


ACCEPTED = (*ENDINGS, "FILE.h5:/NAME", ".zarr")


def read_matrix(path: str, *, stream: bool = False) -> Any:
    """Read a square matrix from a file.

    Parameters
    ----------
    path : str
        ``.npy`` (numpy.save), ``.npz`` (scipy.sparse.save_npz), ``.mtx`` (Matrix Market),
        ``FILE.h5:/NAME`` (a dataset of an HDF5 file) or a ``.zarr`` directory.
    stream : bool
        Whether to leave a dense matrix in its file. A matrix that is large compared with the
        machine's memory is left there in any case.

    Returns
    -------
    A NumPy array or a SciPy CSR array of finite numbers; or, if the matrix is left in the file,
    an object with ``shape``, ``dtype`` and slices, of which only shape and type were checked.

    Raises
    ------
    CommandError
        The file does not exist, has another format, or contains something else.
    """
    file = Path(path)
    if streams.is_container(path) or (stream and file.suffix == ".npy"):
        return _streamable(streams.open_matrix(path), path, stream=stream)
    if file.suffix not in ENDINGS:
        raise CommandError(
            f"{path} must have one of the endings {', '.join(ACCEPTED)}: save a dense matrix with "
            "numpy.save, a sparse one with scipy.sparse.save_npz or scipy.io.mmwrite"
        )
    if stream:
        raise CommandError(f"--stream is for dense matrices, and {path} is sparse; omit --stream")
    if not file.is_file():
        raise CommandError(f"{path} is not a file; check the path")
    if file.suffix == ".npy" and streams.too_large(file.stat().st_size):
        return _streamable(streams.open_matrix(path), path, stream=True)
    loaded = _read(file)
    _require_square(loaded, path)
    return _require_finite(loaded, path)


def _streamable(source: Any, path: str, *, stream: bool) -> Any:
    """The matrix in its file if it is to be streamed or too large, otherwise in memory."""
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
    except Exception as cause:  # parsers raise many exceptions for unknown bytes
        hint = {
            ".npy": "it must be one numeric array, saved with numpy.save",
            ".npz": "it must be a sparse matrix, saved with scipy.sparse.save_npz; "
            "save a dense one with numpy.save",
            ".mtx": "it must be in Matrix Market format",
        }[file.suffix]
        # The rest of a message of NumPy is about its own options.
        reason = one_line(cause).split(". ")[0]
        raise CommandError(f"cannot read {file}: {hint} ({reason})") from cause


def _require_square(loaded: Any, path: str) -> None:
    if loaded.ndim != 2:
        raise CommandError(
            f"{path} has {loaded.ndim} dimensions, and a matrix has 2; save a two-dimensional array"
        )
    m, n = loaded.shape
    if m != n:
        raise CommandError(
            f"{path} is {m} x {n}, and only square matrices have a trace and eigenvalues; save "
            "A.T @ A, whose eigenvalues are the squared singular values"
        )
    if n == 0:
        raise CommandError(
            f"{path} is empty, with shape (0, 0); save a matrix with at least one row"
        )


def _require_numbers(loaded: Any, path: str) -> None:
    if loaded.dtype.kind not in "biufc":
        raise CommandError(f"{path} holds {loaded.dtype}, not numbers; convert it first")


def _require_finite(loaded: Any, path: str) -> Any:
    """The matrix, with finite entries of a type in which matvecs are computed."""
    _require_numbers(loaded, path)
    sparse = scipy.sparse.issparse(loaded)
    if sparse:
        try:
            require_valid_indices(loaded)
        except OperatorError as refusal:
            raise CommandError(f"{path}: {refusal}") from refusal
    matrix = scipy.sparse.csr_array(loaded) if sparse else loaded
    # The algorithms compute in double precision at most.
    if matrix.dtype.itemsize > (16 if matrix.dtype.kind == "c" else 8):
        matrix = matrix.astype(np.complex128 if matrix.dtype.kind == "c" else np.float64)
    bad = np.argwhere(~np.isfinite(matrix.data if sparse else matrix))
    if len(bad):
        where = _position(matrix, bad[0]) if sparse else bad[0]
        raise CommandError(
            f"{path} holds NaN or infinity in {len(bad)} entries, the first in row {where[0]}, "
            f"column {where[1]} (counted from 0); fix the matrix first"
        )
    return matrix


def _position(matrix: Any, index: Any) -> tuple[int, int]:
    """The row and column of an entry of the data of a CSR array."""
    (entry,) = index
    return int(np.searchsorted(matrix.indptr, entry, side="right")) - 1, int(matrix.indices[entry])
