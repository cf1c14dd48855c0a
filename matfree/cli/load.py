"""Explicit matrices from files, checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from matfree.cli import formats, streams
from matfree.cli.failure import CommandError
from matfree.errors import OperatorError
from matfree.operators.csr import require_valid_indices

ACCEPTED = (*formats.ENDINGS, "FILE.npz:/NAME", "FILE.mat:/NAME", "FILE.h5:/NAME", ".zarr")


def read_matrix(path: str, *, stream: bool = False) -> tuple[Any, str]:
    """Read a matrix from a file.

    Parameters
    ----------
    path : str
        ``.npy`` (numpy.save), ``.npz`` (scipy.sparse.save_npz or numpy.savez), ``.mtx`` (Matrix
        Market, also compressed), ``.csv``, ``.mat``, ``FILE.h5:/NAME`` (a dataset of an HDF5
        file) or a ``.zarr`` directory. Endings may be in upper case.
    stream : bool
        Whether to leave a dense matrix in its file. A matrix that is large compared with the
        machine's memory is left there in any case.

    Returns
    -------
    matrix : a NumPy array or a SciPy CSR array of finite numbers; or, if the matrix is left in
        the file, an object with ``shape``, ``dtype`` and slices, of which only shape and type
        were checked
    code : the line of Python that reads the matrix; empty for one that is left in the file

    Raises
    ------
    CommandError
        The file does not exist, has another format, or contains something else.
    """
    file = Path(formats.split_name(path)[0])
    is_npy = file.suffix.lower() == ".npy"
    if streams.is_container(path) or (stream and is_npy):
        return _streamable(streams.open_matrix(path), path, stream=stream), ""
    if formats.format_of(str(file)) is None:
        raise CommandError(
            f"{path} must have one of the endings {', '.join(ACCEPTED)}: save a dense matrix with "
            "numpy.save, a sparse one with scipy.sparse.save_npz or scipy.io.mmwrite"
        )
    if stream:
        raise CommandError(
            "--stream is for dense matrices in .npy, HDF5 and zarr files, which are read in parts: "
            f"got {path}; save the matrix in one of these formats, or omit --stream"
        )
    if not file.is_file():
        raise CommandError(f"{file} is not a file; check the path")
    if is_npy and streams.too_large(file.stat().st_size):
        return _streamable(streams.open_matrix(path), path, stream=True), ""
    loaded, code = formats.read_file(path)
    _require_matrix(loaded, path)
    return _require_finite(loaded, path), code


def _streamable(source: Any, path: str, *, stream: bool) -> Any:
    """The matrix in its file if it is to be streamed or too large, otherwise in memory."""
    _require_matrix(source, path)
    _require_numbers(source, path)
    num_bytes = source.dtype.itemsize * source.shape[0] * source.shape[1]
    if stream or streams.too_large(num_bytes):
        return source
    return _require_finite(np.asarray(source[:]), path)


def _require_matrix(loaded: Any, path: str) -> None:
    if loaded.ndim != 2:
        raise CommandError(
            f"{path} has {loaded.ndim} dimensions, and a matrix has 2; save a two-dimensional array"
        )
    if 0 in loaded.shape:
        raise CommandError(
            f"{path} is empty, with shape {tuple(loaded.shape)}; save a matrix with at least one "
            "row and one column"
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
