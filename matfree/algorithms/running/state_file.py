"""The state of a run on disk: one file, and one shard per process if vectors are sharded.

::

    run.npz                      the state that all processes share, and a list of the shards
    run.piece-12-0-70.npz        generation 12, rows 0 to 70 of everything that has rows
    run.piece-12-70-100.npz

Every process first writes the shard of its rows. When all shards of a generation exist, process
0 writes a new ``run.npz`` and renames it over the old one. The rename is atomic: it is the
moment at which the new generation replaces the old one, whose shards are deleted afterwards.
Hence ``run.npz`` always lists complete shards, no matter when a process is killed. A reader
collects its rows from all shards that overlap with them, so that another number of processes
can resume the run.
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
_SHARD_KIND = "piece of a checkpoint"  # part of the file format


@final
class StateFile:
    """A file of named values, some of which are sharded by rows like the vectors of a space.

    All processes of the space make the same calls.

    Parameters
    ----------
    path : Path
        The main file, which all processes see.
    space : VectorSpace
        The space of the vectors; it knows the rows of this process.

    Raises
    ------
    ValueError
        The file is damaged, or it is not a checkpoint.
    OperatorError
        The processes see different files.
    FileNotFoundError
        The folder of the file does not exist.
    """

    def __init__(self, path: Path, space: VectorSpace) -> None:
        self.path, self.space = path, space
        self.values: archive.Values = {}
        """The values when the file was opened, restricted to the rows of this process."""
        # A new run gets a random identity, so that shards of an earlier run at the same path are
        # never mistaken for its own.
        answers = space.all_gather_object(lambda: (self._read(), secrets.token_hex(8)))
        versions = [version for version, _ in answers]
        others = [rank for rank, version in enumerate(versions) if version != versions[0]]
        if others:
            raise OperatorError(
                f"process {others[0]} does not see the same checkpoint {path} as process 0; give "
                "a path on a file system that all processes share."
            )
        self.run, self.generation = versions[0] or (answers[0][1], 0)

    def write(self, values: Mapping[str, Any], axes: Mapping[str, int]) -> None:
        """Replace the contents of the file.

        Parameters
        ----------
        values : mapping of names to values
        axes : mapping of names to axes
            The values that hold rows of this process, with the axis of the rows.
        """
        generation, shards = self.generation + 1, []
        if self.space.is_sharded and axes:
            local = {name: values[name] for name in axes}
            # The gather is also a barrier: all shards exist when process 0 commits.
            shards = self.space.all_gather_object(lambda: self._write_shard(local, generation))
            values = {name: value for name, value in values.items() if name not in axes}
        contents = {
            **values,
            "axes": dict(axes),
            "pieces": tuple(shards),
            "stamp": (self.run, generation),
        }
        self.space.all_gather_object(lambda: self._commit(contents, generation))
        self.generation = generation

    def _write_shard(self, local: Mapping[str, Any], generation: int) -> tuple[int, int]:
        rows = self.space.rows
        ends = rows.start, rows.stop
        if len(rows):
            version = {"stamp": (self.run, generation), "rows": ends}
            path = self._shard_path(generation, *ends)
            archive.write_archive(path, _SHARD_KIND, {**local, **version})
        return ends

    def _commit(self, contents: archive.Values, generation: int) -> None:
        """Let process 0 write the main file, which makes the new generation valid."""
        if self.space.rank > 0:
            return
        for start, stop in contents["pieces"]:
            shard = self._shard_path(generation, start, stop)
            if stop > start and not shard.exists():
                raise FileNotFoundError(
                    f"checkpoint: process 0 does not see {shard}, which another process has "
                    "written; give a path on a file system that all processes share."
                )
        archive.write_archive(self.path, KIND, contents)
        clean(self.path, generation if contents["pieces"] else None)

    def _shard_path(self, generation: int, start: int, stop: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.piece-{generation}-{start}-{stop}.npz")

    def _read(self) -> tuple[str, int] | None:
        """Read the file, if there is one, and return its run and its generation."""
        if not self.path.exists():
            self._require_folder()
            return None
        with open_checkpoint(self.path) as file:
            axes = file.value("axes") if "axes" in file.names else {}
            shards = file.value("pieces") if "pieces" in file.names else ()
            self.values = {name: file.value(name) for name in file.names if name not in axes}
        run, generation = self.values.pop("stamp", ("", 0))  # absent in early files
        self.values = {k: v for k, v in self.values.items() if k not in ("axes", "pieces")}
        sources = [(self.path, range(self.space.size))]
        if shards:
            sources = [(self._shard_path(generation, *ends), range(*ends)) for ends in shards]
        if axes:
            self.values |= self._local_rows(sources, axes, (run, generation))
        if self.space.rank == 0:
            clean(self.path, generation if shards else None)
        return run, generation

    def _require_folder(self) -> None:
        if self.space.rank == 0 and not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"checkpoint: the folder of {self.path} does not exist; create it first."
            )

    def _local_rows(
        self, sources: list[tuple[Path, range]], axes: Mapping[str, int], version: tuple[str, int]
    ) -> archive.Values:
        """The rows of this process of all values that have rows."""
        found: dict[str, list[Any]] = {name: [] for name in axes}
        for path, rows in _overlapping(sources, self.space.rows):
            try:
                with archive.open_archive(path) as file:
                    if path != self.path and file.value("stamp") != version:
                        raise archive.DamagedFile(f"{path} belongs to another run or generation.")
                    for name, axis in axes.items():
                        found[name].append(file.rows(name, axis, rows))
            except (archive.DamagedFile, FileNotFoundError) as cause:
                raise archive.DamagedFile(
                    f"checkpoint {self.path} cannot be read, because a shard is missing or invalid "
                    f"({cause}) Restore {path.name}, or delete {self.path.name} to start again."
                ) from cause
        return {name: _stack_rows(arrays, axes[name]) for name, arrays in found.items()}


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[archive.OpenFile]:
    """Open the main file of a checkpoint.

    Raises
    ------
    ValueError
        The file is damaged, or it is not a checkpoint.
    """
    try:
        with archive.open_archive(path) as file:
            if file.kind != KIND:
                raise ValueError(
                    f"{path} contains a saved {file.kind}, not a checkpoint; give another path."
                )
            yield file
    except archive.DamagedFile as cause:
        if str(cause).startswith("checkpoint "):  # a shard, whose message is complete
            raise
        raise archive.DamagedFile(
            f"checkpoint {path} cannot be read ({cause}) Delete it to start again."
        ) from cause


def discard(path: Path, space: VectorSpace) -> None:
    """Delete a checkpoint that is not needed any more."""
    if space.rank == 0:
        path.unlink(missing_ok=True)
        clean(path)


def clean(path: Path, generation: int | None = None) -> None:
    """Delete the files of interrupted writes, and the shards of all generations but one."""
    stem, name = glob.escape(path.stem), glob.escape(path.name)
    for leftover in (
        *path.parent.glob(f".{name}.*.partial"),
        *path.parent.glob(f".{stem}.piece-*.partial"),
        *path.parent.glob(f"{stem}.piece-*.npz"),
    ):
        if not leftover.name.startswith(f"{path.stem}.piece-{generation}-"):
            leftover.unlink(missing_ok=True)


def _overlapping(sources: list[tuple[Path, range]], rows: range) -> Iterator[tuple[Path, slice]]:
    """The files that contain some of the rows, and the positions of the rows in them.

    A process without rows reads an empty slice of the first file, to know the data types.
    """
    found = False
    for path, stored in sources:
        start, stop = max(stored.start, rows.start), min(stored.stop, rows.stop)
        if start < stop:
            found = True
            yield path, slice(start - stored.start, stop - stored.start)
    if not found:
        yield next(path for path, stored in sources if len(stored)), slice(0, 0)


def _stack_rows(arrays: list[Any], axis: int) -> Any:
    """The rows from several files as one array, or as one tuple of arrays."""
    if isinstance(arrays[0], tuple):
        return tuple(_stack_rows(list(group), axis) for group in zip(*arrays, strict=True))
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)
