"""Results with sharded vectors: every process saves its rows, and loading joins the files.

A record lists its sharded fields in ``by_row``, with the axis of the vector entries and the
name of the field that holds the range of local rows: (start, stop, n), or None if vectors are
whole. Saving to ``top.npz`` writes ``top.rows-0-70.npz``, ``top.rows-70-100.npz``, and so on,
one file for each process. ``load("top.npz")`` finds these files and concatenates the rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matfree.results.files import archive

RowRange = tuple[int, int, int]
"""(start, stop, n): rows start to stop - 1 of vectors of length n."""

_RTOL = 1e-6  # replicated numbers may be rounded differently on machines of different types


def local_rows(record: Any) -> RowRange | None:
    """The range of rows that a record's vectors hold; None if they are whole or absent."""
    for _, where in record.by_row.values():
        rows: RowRange | None = getattr(record, where)
        if rows is not None:
            return rows
    return None


def shard_path(path: Path, rows: RowRange | None) -> Path:
    """The file for these rows; ``path`` itself if vectors are whole."""
    if rows is None:
        return path
    return archive.sibling(path, f".rows-{rows[0]}-{rows[1]}")


def shard_paths(path: Path) -> list[Path]:
    """The existing files with the shards of a result that was saved to ``path``."""
    name = re.compile(r".*\.rows-(\d+)-(\d+)\.npz", re.DOTALL)
    found = ((file, name.fullmatch(file.name)) for file in path.parent.glob("*.rows-*-*.npz"))
    return sorted(
        file
        for file, match in found
        if match and file == shard_path(path, (int(match[1]), int(match[2]), 0))
    )


def join_shards(path: Path, records: Sequence[Any]) -> Any:
    """Concatenate the shards of one result.

    Raises
    ------
    ValueError
        The records differ in a field that is not sharded, or rows are missing or repeated.
    """
    records = sorted(records, key=lambda record: local_rows(record) or ())
    first = records[0]
    # A field may be None, in all shards.
    held = {name: at for name, at in first.by_row.items() if getattr(first, name) is not None}
    rows = {where for _, where in held.values()}
    for record in records[1:]:
        for field in dataclasses.fields(first):
            if field.name in rows or field.name in held:
                continue
            if not _same_values(getattr(record, field.name), getattr(first, field.name)):
                raise ValueError(
                    f"the shards of {path} belong to different results: {field.name} differs; "
                    "delete the files of the older one."
                )
    for where in rows:
        _require_all_rows(path, [getattr(record, where) for record in records])
    changes: dict[str, Any] = dict.fromkeys(rows)
    for name, (axis, _) in held.items():
        changes[name] = _concatenated([getattr(record, name) for record in records], axis)
    return dataclasses.replace(first, **changes)


def _require_all_rows(path: Path, shards: list[RowRange]) -> None:
    """Require that every row occurs exactly once."""
    end, n = 0, shards[0][2]
    for start, stop, _ in sorted(shards):
        # Empty shards, of processes without rows, may begin anywhere.
        if start != end and stop > start:
            problem = "missing" if start > end else "present twice"
            raise ValueError(
                f"{path} was saved as shards, and rows {min(start, end)} to {max(start, end)} "
                f"are {problem}; save it from all processes, into a folder without the files of "
                "an older result."
            )
        end = max(end, stop)
    if end < n:
        raise ValueError(
            f"{path} was saved as shards, and rows {end} to {n} are missing; save it from all "
            "processes, into one folder."
        )


def _concatenated(found: list[Any], axis: int) -> Any:
    if isinstance(found[0], tuple):
        return tuple(_concatenated(list(parts), axis) for parts in zip(*found, strict=True))
    return np.concatenate(found, axis=axis)


def _same_values(left: Any, right: Any) -> bool:
    """Whether two values are equal, floating-point numbers up to rounding."""
    if isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same_values, left, right))
    if isinstance(right, np.ndarray):
        return left.shape == right.shape and bool(
            np.allclose(left, right, rtol=_RTOL, atol=_RTOL * np.abs(right).max(initial=0.0))
        )
    if isinstance(right, float):
        return bool(np.isclose(left, right, rtol=_RTOL, atol=0.0, equal_nan=True))
    return bool(left == right)
