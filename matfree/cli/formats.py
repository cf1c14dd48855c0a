"""The file formats of matrices that are read into memory, by ending."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import scipy.io
import scipy.sparse

from matfree.cli.failure import CommandError, one_line

_ARRAY_IN_FILE = re.compile(
    r"(?P<file>.*\.(?:npz|mat)):/?(?P<name>[^:]+)", re.DOTALL | re.IGNORECASE
)


@final
class Format(NamedTuple):
    """How files with one of some endings are read."""

    endings: tuple[str, ...]
    read: Callable[[Path, str | None], tuple[Any, str]]
    """From the path and the name of an array in the file, the matrix and the Python that reads it,
    with FILE in place of the path."""
    hint: str
    """What the file must contain, for error messages."""


def split_name(path: str) -> tuple[str, str | None]:
    """The file and the name of an array in it, for ``FILE.npz:/NAME`` and ``FILE.mat:/NAME``."""
    inside = _ARRAY_IN_FILE.fullmatch(path)
    return (path, None) if inside is None else (inside["file"], inside["name"])


def format_of(path: str) -> Format | None:
    """The format by the ending, in upper or lower case; None if there is none."""
    name = Path(path).name.lower()
    return next((form for form in FORMATS if name.endswith(form.endings)), None)


def read_file(path: str) -> tuple[Any, str]:
    """The matrix in a file, and the line of Python that reads it.

    Raises
    ------
    CommandError
        The file has another format, or it has several matrices and none is named.
    """
    file, name = split_name(path)
    form = format_of(file)
    assert form is not None
    try:
        matrix, code = form.read(Path(file), name)
        if not scipy.sparse.issparse(matrix):
            matrix = np.asarray(matrix)
    except CommandError:
        raise
    except MemoryError:
        raise
    except Exception as cause:  # parsers raise many exceptions for unknown bytes
        # The rest of a message of NumPy is about its own options.
        reason = one_line(cause).split(". ")[0]
        raise CommandError(f"cannot read {file}: {form.hint} ({reason})") from cause
    return matrix, code.replace("FILE", repr(file))


def _npy(file: Path, name: str | None) -> tuple[Any, str]:
    return np.load(file, allow_pickle=False), "A = np.load(FILE)"


def _npz(file: Path, name: str | None) -> tuple[Any, str]:
    with np.load(file, allow_pickle=False) as arrays:
        if name is None and "format" in arrays.files:
            return scipy.sparse.load_npz(file), "A = scipy.sparse.load_npz(FILE)"
        key = _only({key: arrays[key] for key in arrays.files}, name, file)
        return arrays[key], f"A = np.load(FILE)[{key!r}]"


def _mat(file: Path, name: str | None) -> tuple[Any, str]:
    try:
        found = scipy.io.loadmat(file, spmatrix=False)
    except NotImplementedError as cause:
        raise CommandError(
            f"{file} is in version 7.3 of the format, which is HDF5; rename it to end in .h5 and "
            "write FILE.h5:/NAME, or save it with -v7"
        ) from cause
    key = _only({k: v for k, v in found.items() if not k.startswith("__")}, name, file)
    return found[key], f"A = scipy.io.loadmat(FILE, spmatrix=False)[{key!r}]"


def _mtx(file: Path, name: str | None) -> tuple[Any, str]:
    opener = {".gz": "gzip", ".bz2": "bz2"}.get(file.suffix.lower())
    if opener is None:
        matrix, source = scipy.io.mmread(file, spmatrix=False), "FILE"
    else:
        with import_module(opener).open(file) as lines:
            matrix, source = scipy.io.mmread(lines, spmatrix=False), f"{opener}.open(FILE)"
    code = f"scipy.io.mmread({source}, spmatrix=False)"
    if scipy.sparse.issparse(matrix):
        code = f"scipy.sparse.csr_array({code})"
    return matrix, f"A = {code}"


def _csv(file: Path, name: str | None) -> tuple[Any, str]:
    with open(file, encoding="utf-8-sig") as lines:
        first = lines.readline()
    if not first.strip():
        raise ValueError("it has no first row")
    header = int(not _is_row(first))
    skip = ", skiprows=1" if header else ""
    options: dict[str, Any] = {"delimiter": ",", "ndmin": 2, "encoding": "utf-8-sig"}
    code = f'A = np.loadtxt(FILE, delimiter=",", ndmin=2, encoding="utf-8-sig"{skip})'
    return np.loadtxt(file, skiprows=header, **options), code


def _is_row(line: str) -> bool:
    """Whether a line of a CSV file consists of numbers, and is not a header."""
    try:
        return bool([float(cell) for cell in line.split(",")])
    except ValueError:
        return False


def _is_numeric(value: Any) -> bool:
    """Whether a value in a file is an array of numbers."""
    return hasattr(value, "shape") and getattr(value, "dtype", np.dtype(object)).kind in "biufc"


def _only(arrays: dict[str, Any], name: str | None, file: Path) -> str:
    """The name of the matrix: the given one, or that of the only matrix in the file."""
    shapes = {key: value.shape for key, value in arrays.items() if _is_numeric(value)}
    matrices = [key for key, shape in shapes.items() if len(shape) == 2]
    listed = ", ".join(matrices) or "none"
    if name is not None:
        if name not in matrices:
            raise CommandError(
                f"{file} contains no matrix {name}; write {file}:/NAME, with NAME one of: {listed}"
            )
        return name
    if len(matrices) > 1:  # MATLAB stores numbers and vectors as matrices
        matrices = [key for key in matrices if min(shapes[key]) > 1] or matrices
    if len(matrices) != 1:
        raise CommandError(
            f"{file} contains {len(matrices)} matrices; write {file}:/NAME, with NAME one of: "
            f"{listed}"
        )
    return matrices[0]


FORMATS = (
    Format((".npy",), _npy, "it must be one numeric array, saved with numpy.save"),
    Format(
        (".npz",),
        _npz,
        "it must be a sparse matrix, saved with scipy.sparse.save_npz, or dense matrices, saved "
        "with numpy.savez",
    ),
    Format((".mtx", ".mtx.gz", ".mtx.bz2"), _mtx, "it must be in Matrix Market format"),
    Format((".csv",), _csv, "it must have rows of numbers separated by commas"),
    Format((".mat",), _mat, "it must be a MATLAB file of version 4 to 7.2"),
)
ENDINGS = tuple(ending for form in FORMATS for ending in form.endings)
