"""Records that outlive the process, and print as a table."""

from __future__ import annotations

import dataclasses
import html
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from matfree.results import archive, sharded_files

_KINDS: dict[str, type[Record]] = {}


class Record:
    """The base of every result: saving, loading, and a table for the reader.

    Subclasses are frozen dataclasses. A field holds a number, a string, None, a tuple of
    plain values, an array, or a tuple of arrays.

    Examples
    --------
    >>> import matfree as mf, numpy as np, tempfile, pathlib
    >>> estimate = mf.trace(np.eye(50), num_probes=3, seed=0)
    >>> path = estimate.save(pathlib.Path(tempfile.mkdtemp()) / "trace")
    >>> path.name, mf.Estimate.load(path).value
    ('trace.npz', 50.0)
    """

    by_row: ClassVar[dict[str, tuple[int, str]]] = {}
    """Fields that hold rows of vectors: along which axis, and the field that says which rows."""

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
        library the result was computed with. Where vectors are cut among processes, each of
        them writes its rows beside ``path``, and reading ``path`` joins them.
        """
        target = sharded_files.path_of(archive.npz_path(path), sharded_files.piece_of(self))
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]  # it is
        archive.write(target, type(self).__name__, {name: getattr(self, name) for name in names})
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
        The file is not one of ours, is cut short, or comes from a newer version; or it was
        saved in pieces, and they are not all there.

    Examples
    --------
    >>> import matfree as mf, numpy as np, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.npz"
    >>> estimate = mf.trace(np.eye(50), num_probes=3, seed=0)
    >>> path = estimate.save(path)
    >>> mf.load(path).value
    50.0
    """
    path = archive.npz_path(path)
    if not path.exists():
        pieces = [load(piece) for piece in sharded_files.paths_of(path)]
        if pieces:
            whole: Record = sharded_files.joined(path, pieces)
            return whole
    kind, values = archive.read(path)
    if kind not in _KINDS:
        raise ValueError(
            f"{path} holds a result of kind {kind}, which nothing imported so far knows; import "
            "the package it comes from (matfree_torch for networks), and load it again."
        )
    record = _KINDS[kind]
    names = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]  # it is
    return record(**{name: value for name, value in values.items() if name in names})


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


_KEPT = {
    "full": "every Lanczos vector",
    "half": "every Lanczos vector in 16 bits",
    "none": "no Lanczos vectors",
}


def memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    """The line of a printed result: none where no budget was given."""
    if not memory:
        return []
    kept, at_once = _KEPT[memory["basis"]], memory["at_once"]
    size = f"{readable(memory['predicted'])} of {readable(memory['budget'])}"
    return [("memory", f"{kept}, {at_once} at once: {size}")]


def readable(size: float) -> str:
    """Bytes in a unit that suits them."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"
