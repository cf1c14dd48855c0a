"""Files with named numbers and arrays: one npz file with a JSON header and no pickle.

A value is a number, a string, None, a tuple or a dict of such values, an array, or a tuple of
arrays. Arrays of every library are read back as NumPy arrays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import secrets
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.arrays import to_host

FORMAT = 1

Values = dict[str, Any]

_HEADER_NAME = "header"
_LONGEST_NAME = 255  # bytes, on all common file systems
_PARSE_LOCK = threading.Lock()
"""NumPy parses array headers as Python literals, which is not thread-safe in some versions of
Python (3.11.7)."""


class DamagedFile(ValueError):  # noqa: N818  # it names the file's state
    """The file was not written by matfree, is truncated, or was written by a newer version."""


def npz_path(path: str | os.PathLike[str]) -> Path:
    """The path with ``.npz`` appended if it is missing."""
    target = Path(path)
    return target if target.suffix == ".npz" else target.with_name(target.name + ".npz")


def file_path(path: str | os.PathLike[str]) -> Path:
    """The path of the file that a checkpoint is written to: with ``.npz``, links resolved.

    Files next to it are then next to the target of the link, on the same file system.
    """
    return Path(os.path.realpath(npz_path(path)))


def sibling(path: Path, suffix: str) -> Path:
    """The path of another ``.npz`` file next to this one, with ``suffix`` appended to its stem.

    If the name would be too long for a file system, a hash replaces the end of the stem.
    """
    name = f"{path.stem}{suffix}.npz"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        checksum = hashlib.sha256(os.fsencode(path.stem)).hexdigest()[:16]
        room = _LONGEST_NAME - len(os.fsencode(f"-{checksum}{suffix}.npz"))
        stem = os.fsencode(path.stem)[:room].decode("utf-8", errors="ignore")
        name = f"{stem}-{checksum}{suffix}.npz"
    return path.with_name(name)


def write_archive(target: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write values to a temporary file in the same folder and rename it to the target.

    A reader therefore sees either the old file or the new one. The data is flushed to disk
    before the rename, so that this also holds after a crash of the machine. If several
    processes write the same target, even on several machines, one of their files remains. If
    the target is a symbolic link, the file that it points to is written.
    """
    target = Path(os.path.realpath(target))
    plain: Values = {}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in values.items():
        _pack(name, value, plain, arrays)
    header = {"format": FORMAT, "kind": kind, "fields": plain}
    arrays[_HEADER_NAME] = np.array(json.dumps(header))
    partial = target.with_name(_partial_name(values))
    try:
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _partial_name(values: Mapping[str, Any]) -> str:
    """A unique name, because several processes may write one target at once.

    It contains the stamp of the run, if there is one, and it is short whatever the target's name.
    """
    run, _ = values.get("stamp", ("", 0))
    return f".{run}-{_machine_name()}-{os.getpid()}-{secrets.token_hex(4)}.partial"


def remove_partials(folder: Path, run: str) -> None:
    """Delete the unfinished files of a run whose process was killed on this machine.

    Processes that exist are left alone: they may be writing at this moment.
    """
    if os.name != "posix" or not run:  # elsewhere os.kill does not test whether a process exists
        return
    for partial in folder.glob(f".{run}-{_machine_name()}-*-*.partial"):
        try:
            os.kill(int(partial.name.split("-")[2]), 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except PermissionError:  # it exists, and belongs to another user
            continue


def _machine_name() -> str:
    """A short name of this machine."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def read_archive(path: str | os.PathLike[str]) -> tuple[str, Values]:
    """Return the kind and the values that ``write_archive`` wrote to a file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    DamagedFile
        The file was not written by matfree, is truncated, or was written by a newer version.
    """
    with open_archive(path) as file:
        return file.kind, {name: file.value(name) for name in file.names}


@contextlib.contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[OpenFile]:
    """Open a file whose values are read one by one; it raises what ``read_archive`` raises."""
    with open(path, "rb") as handle:
        with _as_damage(path):
            file = OpenFile(path, zipfile.ZipFile(handle))
        if file.format > FORMAT:
            raise DamagedFile(
                f"{path} has format {file.format}, and this version of matfree reads formats up "
                f"to {FORMAT}; upgrade matfree."
            )
        yield file


@final
class OpenFile:
    """An open archive: its kind, and its values by name."""

    def __init__(self, path: str | os.PathLike[str], members: zipfile.ZipFile) -> None:
        self._path, self._members = path, members
        header = json.loads(str(self._array(_HEADER_NAME)))
        self.kind, self.format = str(header["kind"]), int(header["format"])
        self._plain = dict(header["fields"])
        arrays = [name.removesuffix(".npy") for name in members.namelist()]
        single = [n for n in arrays if n != _HEADER_NAME and _is_single_array(n, self._plain)]
        self.names = (*self._plain, *single)

    def value(self, name: str) -> Any:
        """Read one value completely."""
        with _as_damage(self._path):
            plain = self._plain.get(name)
            if isinstance(plain, dict) and "arrays" in plain:
                return tuple(self._array(f"{name}.{j}") for j in range(plain["arrays"]))
            if isinstance(plain, dict) and "complex" in plain:
                return complex(*plain["complex"])
            return _as_tuples(plain) if name in self._plain else self._array(name)

    def rows(self, name: str, axis: int, part: slice) -> Any:
        """Read a slice along one axis of an array, or of every array of a tuple."""
        with _as_damage(self._path):
            plain = self._plain.get(name)
            if plain is None:
                return self._rows(name, axis, part)
            return tuple(self._rows(f"{name}.{j}", axis, part) for j in range(plain["arrays"]))

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        with _PARSE_LOCK, self._members.open(f"{name}.npy") as file:
            found: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
            return found

    def _rows(self, name: str, axis: int, part: slice) -> np.ndarray[Any, Any]:
        """Read a slice of an array without reading the rest of it from disk."""
        with self._members.open(f"{name}.npy") as file:
            # np.savez writes format version 1.0 for headers as short as these.
            assert np.lib.format.read_magic(file) == (1, 0)
            with _PARSE_LOCK:
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            # A slice of rows is not contiguous in Fortran order, so that the whole array is read.
            if fortran_order:
                return self._array(name)[(slice(None),) * axis + (part,)]
            begin, count = file.tell(), part.stop - part.start
            row = math.prod(shape[axis + 1 :]) * dtype.itemsize
            found = np.empty((*shape[:axis], count, *shape[axis + 1 :]), dtype=dtype)
            if not found.size:
                return found
            # In C order the slice is one contiguous run of bytes for each leading index.
            runs = found.reshape(-1).view(np.uint8).reshape(-1, count * row)
            for index in range(len(runs)):
                file.seek(begin + (index * shape[axis] + part.start) * row)
                runs[index] = np.frombuffer(file.read(count * row), dtype=np.uint8)
        return found


@contextlib.contextmanager
def _as_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise every exception of the block as ``DamagedFile``."""
    try:
        yield
    except Exception as cause:  # zip, JSON and NumPy each raise their own
        raise DamagedFile(
            f"{path} is not a file that matfree wrote, or it is truncated; compute and save the "
            "result again."
        ) from cause


def _pack(name: str, value: Any, plain: Values, arrays: dict[str, Any]) -> None:
    if _is_array(value):
        arrays[name] = to_host(value)
    elif isinstance(value, tuple) and value and all(map(_is_array, value)):
        plain[name] = {"arrays": len(value)}
        for j, item in enumerate(value):
            arrays[f"{name}.{j}"] = to_host(item)
    elif isinstance(value, complex):
        plain[name] = {"complex": [value.real, value.imag]}
    else:
        plain[name] = value


def _is_single_array(name: str, plain: Values) -> bool:
    """Whether an array is a value on its own rather than an item of a tuple of arrays."""
    family, dot, number = name.rpartition(".")
    return not (dot and number.isdigit() and family in plain)


def _as_tuples(value: Any) -> Any:
    """The value with JSON's lists replaced by tuples."""
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not np.isscalar(value)
