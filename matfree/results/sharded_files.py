"""Results whose vectors several processes hold: a file of each, and one result of all of them.

A record names its fields that hold rows of vectors in ``by_row``, with the axis along which they
do and the field that says which rows: (start, stop, n), or None where vectors are whole. Process
by process it is saved as ``top.rows-0-70.npz``, ``top.rows-70-100.npz``; asked for ``top.npz``,
``load`` finds them and puts them together.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Piece = tuple[int, int, int]
"""start, stop and n, where vectors of length n have their rows start to stop here."""

_RTOL = 1e-6  # processes of unlike machines may round numbers differently that they all have


def piece_of(record: Any) -> Piece | None:
    """The rows that a record's vectors hold; None where they are whole, or there are none."""
    for _, where in record.by_row.values():
        rows: Piece | None = getattr(record, where)
        if rows is not None:
            return rows
    return None


def path_of(path: Path, piece: Piece | None) -> Path:
    """The file of a piece, or of the whole."""
    if piece is None:
        return path
    return path.with_name(f"{path.stem}.rows-{piece[0]}-{piece[1]}.npz")


def paths_of(path: Path) -> list[Path]:
    """The pieces' files that lie beside a path."""
    found = path.parent.glob(f"{glob.escape(path.stem)}.rows-*-*.npz")
    name = re.compile(re.escape(path.stem) + r"\.rows-\d+-\d+\.npz")
    return sorted(file for file in found if name.fullmatch(file.name))


def joined(path: Path, records: Sequence[Any]) -> Any:
    """One record of the pieces, or a ValueError that says why they are not those of one."""
    records = sorted(records, key=lambda record: piece_of(record) or ())
    first = records[0]
    rows = {where for _, where in first.by_row.values()}
    for record in records[1:]:
        for field in dataclasses.fields(first):
            if field.name in rows or field.name in first.by_row:
                continue
            if not _same(getattr(record, field.name), getattr(first, field.name)):
                raise ValueError(
                    f"the pieces of {path} are not those of one result: {field.name} differs; "
                    "delete those of an older one."
                )
    for where in rows:
        _require_whole(path, [getattr(record, where) for record in records])
    changes: dict[str, Any] = dict.fromkeys(rows)
    for name, (axis, _) in first.by_row.items():
        changes[name] = _concatenated([getattr(record, name) for record in records], axis)
    return dataclasses.replace(first, **changes)


def _require_whole(path: Path, pieces: list[Piece]) -> None:
    """Every row once."""
    end, n = 0, pieces[0][2]
    for start, stop, _ in sorted(pieces):
        if start != end and stop > start:
            kind = "missing" if start > end else "there twice"
            raise ValueError(
                f"{path} is not there as a whole, and of its pieces rows {min(start, end)} to "
                f"{max(start, end)} are {kind}; save it from all processes, into a folder without "
                "an older one's."
            )
        end = max(end, stop)
    if end < n:
        raise ValueError(
            f"{path} is not there as a whole, and of its pieces rows {end} to {n} are missing; "
            "save it from all processes, into one folder."
        )


def _concatenated(found: list[Any], axis: int) -> Any:
    if isinstance(found[0], tuple):
        return tuple(_concatenated(list(parts), axis) for parts in zip(*found, strict=True))
    return np.concatenate(found, axis=axis)


def _same(left: Any, right: Any) -> bool:
    """Whether two values are one, numbers up to rounding."""
    if isinstance(right, tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(right, np.ndarray):
        return left.shape == right.shape and bool(
            np.allclose(left, right, rtol=_RTOL, atol=_RTOL * np.abs(right).max(initial=0.0))
        )
    if isinstance(right, float):
        return bool(np.isclose(left, right, rtol=_RTOL, atol=0.0, equal_nan=True))
    return bool(left == right)
