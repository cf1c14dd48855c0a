"""Files that hold named numbers and arrays: one npz with a JSON header, no pickle.

A value is a number, a string, None, a tuple or a dict of plain values, an array, or a
tuple of arrays; arrays of any library come back as NumPy's.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
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

_HEADER = "header"
_ONE_AT_A_TIME = threading.Lock()
"""NumPy parses headers as Python, which some Pythons (3.11.7) fail at in two threads at once."""


class DamagedFile(ValueError):  # noqa: N818  # it names the file's state
    """The file is not one of ours, is cut short, or is younger than this library."""


def npz_path(path: str | os.PathLike[str]) -> Path:
    """The path with ``.npz`` appended where it is missing."""
    target = Path(path)
    return target if target.suffix == ".npz" else target.with_name(target.name + ".npz")


def write(target: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write values beside the target, then rename: a reader sees the old file or the new one.

    The data is on disk before the name is, so that a crash of the machine keeps one of them
    as well. Several processes may write one target, on several machines: one of theirs stays.
    """
    plain: Values = {}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in values.items():
        _pack(name, value, plain, arrays)
    header = {"format": FORMAT, "kind": kind, "fields": plain}
    arrays[_HEADER] = np.array(json.dumps(header))
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[str, Values]:
    """The kind and the values that ``write`` put into a file.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    DamagedFile
        It is not one of ours, is cut short, or comes from a newer version.
    """
    with opened(path) as file:
        return file.kind, {name: file.value(name) for name in file.names}


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[OpenFile]:
    """A file whose values are read one by one; raises what ``read`` does."""
    with open(path, "rb") as handle:
        with _as_damage(path):
            file = OpenFile(path, zipfile.ZipFile(handle))
        if file.format > FORMAT:
            raise DamagedFile(
                f"{path} has format {file.format}; this matfree reads up to {FORMAT}."
            )
        yield file


@final
class OpenFile:
    """What a file holds: its kind, and values by name."""

    def __init__(self, path: str | os.PathLike[str], members: zipfile.ZipFile) -> None:
        self._path, self._members = path, members
        header = json.loads(str(self._array(_HEADER)))
        self.kind, self.format = str(header["kind"]), int(header["format"])
        self._plain = dict(header["fields"])
        arrays = [name.removesuffix(".npy") for name in members.namelist()]
        single = [name for name in arrays if name != _HEADER and _whole_name(name, self._plain)]
        self.names = (*self._plain, *single)

    def value(self, name: str) -> Any:
        """A value, whole."""
        with _as_damage(self._path):
            plain = self._plain.get(name)
            if isinstance(plain, dict) and "arrays" in plain:
                return tuple(self._array(f"{name}.{j}") for j in range(plain["arrays"]))
            if isinstance(plain, dict) and "complex" in plain:
                return complex(*plain["complex"])
            return _as_tuples(plain) if name in self._plain else self._array(name)

    def rows(self, name: str, axis: int, part: slice) -> Any:
        """What an array, or each array of a tuple, holds between two places of an axis."""
        with _as_damage(self._path):
            plain = self._plain.get(name)
            if plain is None:
                return self._rows(name, axis, part)
            return tuple(self._rows(f"{name}.{j}", axis, part) for j in range(plain["arrays"]))

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        with _ONE_AT_A_TIME, self._members.open(f"{name}.npy") as file:
            found: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
            return found

    def _rows(self, name: str, axis: int, part: slice) -> np.ndarray[Any, Any]:
        """Read from the disk what is wanted and nothing else."""
        with self._members.open(f"{name}.npy") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            with _ONE_AT_A_TIME:
                shape, upright, dtype = np.lib.format.read_array_header_1_0(file)
            if upright:
                return self._array(name)[(slice(None),) * axis + (part,)]
            begin, count = file.tell(), part.stop - part.start
            row = math.prod(shape[axis + 1 :]) * dtype.itemsize
            found = np.empty((*shape[:axis], count, *shape[axis + 1 :]), dtype=dtype)
            if not found.size:
                return found
            stretches = found.reshape(-1).view(np.uint8).reshape(-1, count * row)
            for number in range(len(stretches)):
                file.seek(begin + (number * shape[axis] + part.start) * row)
                stretches[number] = np.frombuffer(file.read(count * row), dtype=np.uint8)
        return found


@contextlib.contextmanager
def _as_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever fails in here is the file's fault."""
    try:
        yield
    except Exception as cause:  # zip, JSON and NumPy each have their own
        raise DamagedFile(
            f"{path} is not a file that matfree wrote, or it is cut short."
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


def _whole_name(name: str, plain: Values) -> bool:
    """Whether an array is a value of its own, rather than one of a tuple's."""
    family, dot, number = name.rpartition(".")
    return not (dot and number.isdigit() and family in plain)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not np.isscalar(value)
