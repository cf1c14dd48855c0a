"""The state of a run on disk: one file, and where vectors are cut a piece of every process.

    run.npz                      what all processes know, and which pieces belong to it
    run.piece-12-0-70.npz        generation 12, rows 0 to 70 of everything that has rows
    run.piece-12-70-100.npz

The pieces of a generation are written first, each by the process that has the rows. When all are
there, process 0 renames the new ``run.npz`` over the old one, which is the moment that the new
generation counts; then it deletes the pieces of the old one. So at any moment ``run.npz`` names
pieces that are whole. Whoever reads takes the rows it needs from whichever files have them, and
the number of processes that wrote them does not matter.
"""

from __future__ import annotations

import contextlib
import glob
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.errors import OperatorError
from matfree.results import archive
from matfree.spaces import VectorSpace

KIND = "checkpoint"
_PIECE = "piece of a checkpoint"


@final
class StateFile:
    """Named values that outlive the processes; some of them cut into rows like their vectors.

    All processes of the space make the same calls.

    Parameters
    ----------
    path : of the main file, which all processes see
    space : tells the rows of this process
    """

    def __init__(self, path: Path, space: VectorSpace) -> None:
        self.path, self.space = path, space
        self.values: archive.Values = {}
        """What the file held when it was opened, of rows those of this process."""
        answers = space.all_gather_object(lambda: (self._opened(), secrets.token_hex(8)))
        stamps = [stamp for stamp, _ in answers]
        others = [rank for rank, stamp in enumerate(stamps) if stamp != stamps[0]]
        if others:
            raise OperatorError(
                f"process {others[0]} does not see the same checkpoint {path} as process 0; give "
                "a path on a file system that all processes share."
            )
        self.run, self.generation = stamps[0] or (answers[0][1], 0)

    def write(self, values: Mapping[str, Any], axes: Mapping[str, int]) -> None:
        """Replace what the file holds.

        Parameters
        ----------
        values : by name
        axes : of the values that hold rows of this process, the axis along which they do
        """
        generation, pieces = self.generation + 1, []
        if self.space.is_sharded and axes:
            own = {name: values[name] for name in axes}
            pieces = self.space.all_gather_object(lambda: self._write_piece(own, generation))
            values = {name: value for name, value in values.items() if name not in axes}
        everything = {
            **values,
            "axes": dict(axes),
            "pieces": tuple(pieces),
            "stamp": (self.run, generation),
        }
        self.space.all_gather_object(lambda: self._commit(everything, generation))
        self.generation = generation

    def _write_piece(self, own: Mapping[str, Any], generation: int) -> tuple[int, int]:
        rows = self.space.rows
        ends = rows.start, rows.stop
        if len(rows):
            stamp = {"stamp": (self.run, generation), "rows": ends}
            archive.write_archive(self._piece(generation, *ends), _PIECE, {**own, **stamp})
        return ends

    def _commit(self, everything: archive.Values, generation: int) -> None:
        if self.space.rank > 0:
            return
        for start, stop in everything["pieces"]:
            piece = self._piece(generation, start, stop)
            if stop > start and not piece.exists():
                raise FileNotFoundError(
                    f"checkpoint: process 0 does not see {piece}, which another process has "
                    "written; give a path on a file system that all processes share."
                )
        archive.write_archive(self.path, KIND, everything)
        clean(self.path, generation if everything["pieces"] else None)

    def _piece(self, generation: int, start: int, stop: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.piece-{generation}-{start}-{stop}.npz")

    def _opened(self) -> tuple[str, int] | None:
        """Read the file, if there is one; the run and the generation that it is of."""
        if not self.path.exists():
            self._require_folder()
            return None
        with opened(self.path) as file:
            axes = file.value("axes") if "axes" in file.names else {}
            pieces = file.value("pieces") if "pieces" in file.names else ()
            self.values = {name: file.value(name) for name in file.names if name not in axes}
        run, generation = self.values.pop("stamp", ("", 0))
        self.values = {k: v for k, v in self.values.items() if k not in ("axes", "pieces")}
        sources = [(self.path, range(self.space.size))]
        if pieces:
            sources = [(self._piece(generation, *ends), range(*ends)) for ends in pieces]
        if axes:
            self.values |= self._rows(sources, axes, (run, generation))
        if self.space.rank == 0:
            clean(self.path, generation if pieces else None)
        return run, generation

    def _require_folder(self) -> None:
        if self.space.rank == 0 and not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"checkpoint: the folder of {self.path} does not exist; make it before the run."
            )

    def _rows(
        self, sources: list[tuple[Path, range]], axes: Mapping[str, int], stamp: tuple[str, int]
    ) -> archive.Values:
        """The rows of this process of everything that has rows."""
        parts: dict[str, list[Any]] = {name: [] for name in axes}
        for path, part in _overlapping(sources, self.space.rows):
            try:
                with archive.open_archive(path) as file:
                    if path != self.path and file.value("stamp") != stamp:
                        raise archive.DamagedFile(f"{path} is of another run, or another moment.")
                    for name, axis in axes.items():
                        parts[name].append(file.rows(name, axis, part))
            except (archive.DamagedFile, FileNotFoundError) as cause:
                raise archive.DamagedFile(
                    f"checkpoint {self.path} cannot be read, for a piece of it is missing or not "
                    f"its own ({cause}) Put {path.name} back, or delete {self.path.name} to start "
                    "anew."
                ) from cause
        return {name: _joined(found, axes[name]) for name, found in parts.items()}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[archive.OpenFile]:
    """A checkpoint's main file; whatever is wrong with it is explained."""
    try:
        with archive.open_archive(path) as file:
            if file.kind != KIND:
                raise ValueError(
                    f"{path} holds a saved {file.kind}, no checkpoint; give another path."
                )
            yield file
    except archive.DamagedFile as cause:
        if str(cause).startswith("checkpoint "):  # explained already
            raise
        raise archive.DamagedFile(
            f"checkpoint {path} cannot be read ({cause}) Delete it to start anew."
        ) from cause


def discard(path: Path, space: VectorSpace) -> None:
    """Delete a checkpoint that is not needed any more."""
    if space.rank == 0:
        path.unlink(missing_ok=True)
        clean(path)


def clean(path: Path, generation: int | None = None) -> None:
    """Delete what interrupted writes left behind, and pieces of other generations than one."""
    stem, name = glob.escape(path.stem), glob.escape(path.name)
    for leftover in (
        *path.parent.glob(f".{name}.*.partial"),
        *path.parent.glob(f".{stem}.piece-*.partial"),
        *path.parent.glob(f"{stem}.piece-*.npz"),
    ):
        if not leftover.name.startswith(f"{path.stem}.piece-{generation}-"):
            leftover.unlink(missing_ok=True)


def _overlapping(sources: list[tuple[Path, range]], rows: range) -> Iterator[tuple[Path, slice]]:
    """Which files have some of the rows, and where in them; one for no rows, to know the type."""
    found = False
    for path, held in sources:
        start, stop = max(held.start, rows.start), min(held.stop, rows.stop)
        if start < stop:
            found = True
            yield path, slice(start - held.start, stop - held.start)
    if not found:
        yield next(path for path, held in sources if len(held)), slice(0, 0)


def _joined(found: list[Any], axis: int) -> Any:
    """Parts from several files as one array, or as one tuple of arrays."""
    if isinstance(found[0], tuple):
        return tuple(_joined(list(parts), axis) for parts in zip(*found, strict=True))
    return found[0] if len(found) == 1 else np.concatenate(found, axis=axis)
