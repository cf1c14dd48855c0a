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

Every file carries the stamp of its run, and a run deletes only files with its own stamp. Without
shards, several processes may use one path at once: each writes complete files. With shards, a
run that finds files of another one in the place of its own ends with an error.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from matfree.errors import OperatorError
from matfree.results.files import archive
from matfree.spaces import VectorSpace

KIND = "checkpoint"
_SHARD_KIND = "piece of a checkpoint"  # part of the file format
_SHARD_NAME = re.compile(r".*\.piece-(\d+)-(\d+)-(\d+)\.npz", re.DOTALL)
_REQUIRED = {"problem", "operator_print", "num_matvecs", "overhead"}  # in every checkpoint


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
        self._has_shards = False
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
        archive.remove_partials(path.parent, self.run)

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
            path = _shard_path(self.path, generation, *ends)
            if path.exists() and _stamp_of(path) is None:
                raise ValueError(
                    f"checkpoint {self.path} needs the name {path.name}, which is that of another "
                    "file; move that file, or give another path."
                )
            archive.write_archive(path, _SHARD_KIND, {**local, **version})
        return ends

    def _commit(self, contents: archive.Values, generation: int) -> None:
        """Let process 0 write the main file, which makes the new generation valid."""
        if self.space.rank > 0:
            return
        shards = [ends for ends in contents["pieces"] if ends[1] > ends[0]]
        for ends in shards:
            self._require_own_shard(_shard_path(self.path, generation, *ends), generation)
        if shards and self.generation:
            self._require_own_main_file()
        archive.write_archive(self.path, KIND, contents)
        if shards or self._has_shards:
            remove_shards(self.path, self.run, generation if shards else None)
        self._has_shards = bool(shards)

    def _require_own_shard(self, shard: Path, generation: int) -> None:
        if not shard.exists():
            raise FileNotFoundError(
                f"checkpoint: process 0 does not see {shard}, which another process has "
                "written; give a path on a file system that all processes share, and that no "
                "other run uses."
            )
        if _stamp_of(shard) != (self.run, generation):
            raise self._shared_path()

    def _require_own_main_file(self) -> None:
        """Raise ValueError if the main file is not the one that this run wrote or read last."""
        with contextlib.suppress(FileNotFoundError), open_checkpoint(self.path) as file:
            if file.value("stamp") != (self.run, self.generation):
                raise self._shared_path()

    def _shared_path(self) -> ValueError:
        return ValueError(
            f"checkpoint {self.path}: another run writes to this path at the same time; give "
            "every run a path of its own."
        )

    def _read(self) -> tuple[str, int] | None:
        """Read the file, if there is one, and return its run and its generation."""
        try:
            return self._read_main_file()
        except FileNotFoundError:
            self._require_folder()
            return None

    def _read_main_file(self) -> tuple[str, int]:
        with open_checkpoint(self.path) as file:
            axes = file.value("axes") if "axes" in file.names else {}
            shards = file.value("pieces") if "pieces" in file.names else ()
            self.values = {name: file.value(name) for name in file.names if name not in axes}
        if not self.values.keys() >= _REQUIRED:
            raise archive.DamagedFile(
                f"checkpoint {self.path} holds no state of a run. Delete it to start again."
            )
        run, generation = self.values.pop("stamp", ("", 0))  # absent in early files
        self.values = {k: v for k, v in self.values.items() if k not in ("axes", "pieces")}
        sources = [(self.path, range(self.space.size))]
        if shards:
            sources = [(_shard_path(self.path, generation, *ends), range(*ends)) for ends in shards]
        if axes:
            self.values |= self._local_rows(sources, axes, (run, generation))
        self._has_shards = bool(shards)
        if self.space.rank == 0 and shards:
            remove_shards(self.path, run, generation)
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


def discard(path: Path, space: VectorSpace, seed: int) -> None:
    """Delete the file of a finished search for eigenpairs with this seed, and no other file."""
    if space.rank > 0:
        return
    try:
        with open_checkpoint(path) as file:
            problem, (run, _) = file.value("problem"), file.value("stamp")
    except (FileNotFoundError, ValueError):
        return
    if problem.get("estimator") == "eigsh" and problem.get("seed") == seed:
        path.unlink(missing_ok=True)
        remove_shards(path, run)


def remove_shards(path: Path, run: str, generation: int | None = None) -> None:
    """Delete the shards of a run, except those of one generation."""
    for file in path.parent.glob("*.piece-*-*-*.npz"):
        found = _SHARD_NAME.fullmatch(file.name)
        if found is None:
            continue
        own, start, stop = map(int, found.groups())
        if own == generation or file != _shard_path(path, own, start, stop):
            continue
        stamp = _stamp_of(file)
        if stamp is not None and stamp[0] == run:
            file.unlink(missing_ok=True)


def _shard_path(path: Path, generation: int, start: int, stop: int) -> Path:
    return archive.sibling(path, f".piece-{generation}-{start}-{stop}")


def _stamp_of(shard: Path) -> tuple[str, int] | None:
    """The run and the generation of a shard; None for another file."""
    try:
        with archive.open_archive(shard) as file:
            if file.kind != _SHARD_KIND:
                return None
            run, generation = file.value("stamp")
            return run, generation
    except (archive.DamagedFile, OSError):
        return None


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
