"""Records that outlive the process: one npz file with a JSON header, no pickle."""

from __future__ import annotations

import dataclasses
import html
import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from matfree.arrays import to_host

FORMAT = 1
_KINDS: dict[str, type[Record]] = {}


class Record:
    """The base of every result: saving, loading, and a table for the reader.

    Subclasses are frozen dataclasses. A field holds a number, a string, None, a tuple of
    plain values, an array, or a tuple of arrays.
    """

    def __init_subclass__(cls) -> None:
        _KINDS[cls.__name__] = cls

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write this result to an ``.npz`` file, atomically.

        Parameters
        ----------
        path : path of the file; ``.npz`` is appended where it is missing.

        Returns
        -------
        The path written. ``matfree.load(path)`` reads it back with NumPy arrays, whatever
        library the result was computed with.
        """
        target = Path(path)
        if target.suffix != ".npz":
            target = target.with_name(target.name + ".npz")
        plain: dict[str, Any] = {}
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # a dataclass
            _pack(field.name, getattr(self, field.name), plain, arrays)
        header = {"format": FORMAT, "kind": type(self).__name__, "fields": plain}
        arrays["header"] = np.array(json.dumps(header))
        _write_atomically(target, arrays)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result of this kind; ValueError where the file holds something else."""
        record = load(path)
        if not isinstance(record, cls):
            kind = type(record).__name__
            raise ValueError(f"{path} holds a result of kind {kind}, not {cls.__name__}.")
        return record

    def _rows(self) -> list[tuple[str, str]]:
        """The lines of the printed table, as (name, text)."""
        raise NotImplementedError

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self._rows()
        )
        return f"<table>{cells}</table>"


def load(path: str | os.PathLike[str]) -> Record:
    """Read any result that ``save`` wrote.

    Raises
    ------
    ValueError
        The file is not one of ours, is cut short, or comes from a newer version.

    Examples
    --------
    >>> import matfree as mf, numpy as np, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.npz"
    >>> estimate = mf.trace(np.eye(50), num_probes=3, seed=0)
    >>> path = estimate.save(path)
    >>> mf.load(path).value
    50.0
    """
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            kind, version = str(header["kind"]), int(header["format"])
            arrays = {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise
    except Exception as cause:
        raise ValueError(f"{path} is not a result saved by matfree, or is cut short.") from cause
    if version > FORMAT:
        raise ValueError(f"{path} has format {version}; this matfree reads up to {FORMAT}.")
    if kind not in _KINDS:
        raise ValueError(
            f"{path} holds a result of kind {kind}, which nothing imported so far defines; import "
            "the package it comes from (matfree_torch for networks), and load it again."
        )
    return _unpack(_KINDS[kind], header["fields"], arrays)


def _pack(name: str, value: Any, plain: dict[str, Any], arrays: dict[str, Any]) -> None:
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


def _unpack(kind: type[Record], plain: dict[str, Any], arrays: dict[str, Any]) -> Record:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass
        name, value = field.name, plain.get(field.name)
        if isinstance(value, dict) and "arrays" in value:
            value = tuple(arrays[f"{name}.{j}"] for j in range(value["arrays"]))
        elif isinstance(value, dict) and "complex" in value:
            value = complex(*value["complex"])
        elif name in arrays:
            value = arrays[name]
        elif name not in plain:
            continue  # a field younger than the file keeps its default
        values[name] = _as_tuples(value)
    return kind(**values)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not np.isscalar(value)


def _write_atomically(target: Path, arrays: dict[str, Any]) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
