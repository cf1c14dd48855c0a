"""Matrices that stay in their files and are read during every matvec."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from matfree.cli.failure import CommandError, one_line

_HDF5 = re.compile(r"(?P<file>.*\.(?:h5|hdf5))(?::(?P<name>.*))?", re.DOTALL | re.IGNORECASE)

_MEMORY_DIVISOR = 4
"""A matrix is streamed if it is larger than the machine's memory divided by this number: a
matrix in memory is checked for NaN and asymmetry, which makes copies of it."""


def is_container(path: str) -> bool:
    """Whether a path refers to a dataset in an HDF5 file or to a zarr array."""
    return _HDF5.fullmatch(path) is not None or path.rstrip("/").lower().endswith(".zarr")


def too_large(num_bytes: int) -> bool:
    """Whether a matrix of this size is left in its file."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # the system does not report it
        return False
    return num_bytes > memory // _MEMORY_DIVISOR


def open_matrix(path: str) -> Any:
    """Open a matrix: an object with ``shape``, ``dtype`` and slices that reads nothing yet.

    Parameters
    ----------
    path : str
        ``.npy``, ``file.h5:/name`` or a ``.zarr`` directory.

    Raises
    ------
    CommandError
        The file does not exist or has another format, or the library for it is not installed.
    """
    inside = _HDF5.fullmatch(path)
    if inside is not None:
        return _dataset(Path(inside["file"]), inside["name"])
    if not Path(path).exists():
        raise CommandError(f"{path} does not exist; check the path")
    try:
        if path.lower().endswith(".npy"):
            return np.load(path, mmap_mode="r", allow_pickle=False)
        return _library("zarr").open_array(path, mode="r")
    except CommandError:
        raise
    except Exception as cause:  # parsers raise many exceptions for unknown bytes
        hint = "it must be one numeric array, saved with numpy.save or written by zarr"
        raise CommandError(f"cannot read {path}: {hint} ({one_line(cause)})") from cause


def reader_code(path: str) -> tuple[str, str]:
    """The import and the line of Python that open the same matrix."""
    inside = _HDF5.fullmatch(path)
    if inside is not None:
        return "import h5py", f"A = h5py.File({inside['file']!r})[{inside['name']!r}]"
    if path.lower().endswith(".npy"):
        return "import numpy as np", f'A = np.load({path!r}, mmap_mode="r")'
    return "import zarr", f'A = zarr.open_array({path!r}, mode="r")'


def _dataset(file: Path, name: str | None) -> Any:
    if not file.is_file():
        raise CommandError(f"{file} is not a file; check the path")
    h5py = _library("h5py")
    try:
        contents = h5py.File(file, "r")
    except OSError as cause:
        raise CommandError(f"cannot read {file}: it must be HDF5 ({one_line(cause)})") from cause
    if not name or not isinstance(contents.get(name), h5py.Dataset):
        found: list[str] = []
        contents.visititems(lambda at, item: found.append(at) if hasattr(item, "shape") else None)
        missing = f"contains no dataset {name}" if name else "needs the name of a dataset"
        raise CommandError(
            f"{file} {missing}; write {file}:/NAME, with NAME one of: {', '.join(found) or 'none'}"
        )
    return contents[name]


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as cause:
        raise CommandError(
            f"this file needs {name}, which is not installed: pip install {name}"
        ) from cause
