"""Files that hold named numbers and arrays: one npz with a JSON header, no pickle.

A value is a number, a string, None, a tuple or a dict of plain values, an array, or a
tuple of arrays; arrays of any library come back as NumPy's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from matfree.arrays import to_host

FORMAT = 1

Values = dict[str, Any]


class DamagedFile(ValueError):  # noqa: N818  # it names the file's state
    """The file is not one of ours, is cut short, or is younger than this library."""


def npz_path(path: str | os.PathLike[str]) -> Path:
    """The path with ``.npz`` appended where it is missing."""
    target = Path(path)
    return target if target.suffix == ".npz" else target.with_name(target.name + ".npz")


def write(target: Path, kind: str, values: Mapping[str, Any]) -> None:
    """Write values beside the target, then rename: a reader sees the old file or the new one.

    The data is on disk before the name is, so that a crash of the machine keeps one of them
    as well.
    """
    plain: Values = {}
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in values.items():
        _pack(name, value, plain, arrays)
    header = {"format": FORMAT, "kind": kind, "fields": plain}
    arrays["header"] = np.array(json.dumps(header))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
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
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            kind, version = str(header["kind"]), int(header["format"])
            plain = dict(header["fields"])
            arrays = {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise
    except Exception as cause:  # zip, JSON and NumPy each have their own
        raise DamagedFile(
            f"{path} is not a file that matfree wrote, or it is cut short."
        ) from cause
    if version > FORMAT:
        raise DamagedFile(f"{path} has format {version}; this matfree reads up to {FORMAT}.")
    single = {name: array for name, array in arrays.items() if _whole_name(name, plain)}
    return kind, {name: _unpacked(name, plain[name], arrays) for name in plain} | single


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


def _unpacked(name: str, value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, dict) and "arrays" in value:
        return tuple(arrays[f"{name}.{j}"] for j in range(value["arrays"]))
    if isinstance(value, dict) and "complex" in value:
        return complex(*value["complex"])
    return _as_tuples(value)


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
