"""The base class of all results: saving, loading, and printing as a table."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from matfree.results.files import archive, sharded_files

_KINDS: dict[str, type[Record]] = {}
"""Every record class that was imported, by name."""


class Record:
    """The base class of all results: saving, loading, and printing as a table.

    Subclasses are frozen dataclasses. The value of a field is a number, a string, None, a
    tuple of such values, an array, or a tuple of arrays.

    Examples
    --------
    >>> import matfree as mf, numpy as np, tempfile, pathlib
    >>> estimate = mf.trace(np.eye(50), num_probes=3, seed=0)
    >>> path = estimate.save(pathlib.Path(tempfile.mkdtemp()) / "trace")
    >>> path.name, mf.Estimate.load(path).value
    ('trace.npz', 50.0)
    """

    by_row: ClassVar[dict[str, tuple[int, str]]] = {}
    """The fields whose arrays are sharded when vectors are: for each, the axis of the vector
    entries and the name of the field that holds the range of local rows."""

    units: ClassVar[tuple[str, ...]] = ()
    """The fields that are multiplied by c if the operator is multiplied by c > 0."""
    history_units: ClassVar[tuple[bool, ...]] = (False, True, True)
    """Whether this holds for the numbers of each entry of ``history``, if there is one."""

    def __init_subclass__(cls) -> None:
        _KINDS[cls.__name__] = cls

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write this result to an ``.npz`` file, atomically.

        Parameters
        ----------
        path : path of the file; ``.npz`` is appended if it is missing.

        Returns
        -------
        The path of the file that was written. ``matfree.load(path)`` returns the same result
        with NumPy arrays, whichever array library it was computed with. If vectors are
        sharded, every process writes its rows to a separate file next to ``path``, and loading
        ``path`` concatenates them.
        """
        target = sharded_files.shard_path(archive.npz_path(path), sharded_files.local_rows(self))
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]  # it is
        values = {name: getattr(self, name) for name in names}
        archive.write_archive(target, type(self).__name__, values)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result of this class; ValueError if the file holds a result of another."""
        record = load(path)
        if not isinstance(record, cls):
            kind = type(record).__name__
            raise ValueError(
                f"{path} holds a result of kind {kind}, not {cls.__name__}; read it with "
                f"{kind}.load or matfree.load."
            )
        return record

    def times(self, factor: float) -> Self:
        """The result for the operator c A, if it is proportional to A.

        Parameters
        ----------
        factor : float
            c > 0.

        Raises
        ------
        OverflowError
            The value exceeds the range of double precision.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> mf.trace(np.eye(50), num_probes=3, seed=0).times(0.5).value
        25.0
        """
        with np.errstate(over="ignore"):
            changes = {name: _times(getattr(self, name), factor) for name in self.units}
        value = changes.get("value", 0.0)
        if not hasattr(value, "shape") and not np.isfinite(value):
            raise OverflowError(
                f"the result exceeds the range of double precision: it is {factor:.6g} times "
                f"{getattr(self, 'value', None)}; divide the operator by a number first."
            )
        if hasattr(self, "history") and self.units:
            changes["history"] = tuple(
                tuple(
                    x * factor if unit else x
                    for x, unit in zip(entry, self.history_units, strict=True)
                )
                for entry in self.history
            )
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  # it is a dataclass

    def _rows(self) -> list[tuple[str, str]]:
        """The rows of the printed table, as (name, text)."""
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


def _times(value: Any, factor: float) -> Any:
    """A number, an array or a tuple of these times a factor; None stays None."""
    if isinstance(value, tuple):
        return tuple(_times(part, factor) for part in value)
    return None if value is None else value * factor


def load(path: str | os.PathLike[str]) -> Record:
    """Read a result that ``save`` wrote.

    Parameters
    ----------
    path : path of the file; ``.npz`` is appended if it is missing. For a result that several
        processes saved, the path that was passed to ``save``.

    Returns
    -------
    The result, with NumPy arrays.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file was not written by matfree, is truncated, or was written by a newer version;
        or some of the files of a sharded result are missing.

    Examples
    --------
    >>> import matfree as mf, numpy as np, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trace.npz"
    >>> estimate = mf.trace(np.eye(50), num_probes=3, seed=0)
    >>> path = estimate.save(path)
    >>> mf.load(path).value
    50.0
    """
    given = Path(path)
    path = given if given.is_file() else archive.npz_path(given)
    # A sharded result has no file of its own name, only one for each shard.
    if not path.exists():
        shards = [load(file) for file in sharded_files.shard_paths(path)]
        if shards:
            whole: Record = sharded_files.join_shards(path, shards)
            return whole
    kind, values = archive.read_archive(path)
    if kind not in _KINDS:
        raise ValueError(
            f"{path} holds a result of kind {kind}, which no imported package defines; import "
            "the package it comes from (matfree_torch for networks), and load it again."
        )
    record = _KINDS[kind]
    names = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]  # it is
    # A field that this version does not know is ignored, so that newer files can be read.
    known = {name: value for name, value in values.items() if name in names}
    try:
        found = record(**known)
        str(found)  # which reads the fields
    except Exception as cause:  # values of wrong types fail in many ways
        raise archive.DamagedFile(
            f"{path} does not hold a complete result of kind {kind}; compute and save the result "
            "again."
        ) from cause
    return found


def residual_rows(
    name: str, values: Iterable[float], residuals: Iterable[float], converged: Iterable[bool]
) -> list[tuple[str, str]]:
    """The table rows of eigenvalues or singular values, each with its residual."""
    return [
        (
            f"{name} {j}",
            f"{value:.10g}   residual {residual:.1e}{'' if done else '   NOT converged'}",
        )
        for j, (value, residual, done) in enumerate(
            zip(values, residuals, converged, strict=True), start=1
        )
    ]


_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


_STORED_BASIS = {
    "full": "every Lanczos vector stored",
    "half": "every Lanczos vector stored in 16 bits",
    "none": "no Lanczos vectors stored",
}


def memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    """The table row about a memory budget; no row if no budget was given."""
    if not memory:
        return []
    basis, at_once = _STORED_BASIS[memory["basis"]], memory["at_once"]
    usage = f"{readable(memory['predicted'])} of {readable(memory['budget'])}"
    return [("memory", f"{basis}, {at_once} at once: {usage}")]


def readable(size: float) -> str:
    """A number of bytes as text, in a unit that suits it: "1.5 MiB"."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}"
