"""Checkpoints: the state of a run in a file that is written after every block of vectors.

The state of a run between two blocks consists of a few arrays and numbers. An object lists the
attributes that belong to it in a class attribute ``saved``; :func:`state_of` collects them,
also from attributes that are objects with a ``saved`` themselves, and :func:`restore` puts them
back. Two further class attributes are optional: ``by_row`` maps the attributes that hold rows
of vectors to the axis of the rows, so that another number of processes can resume the run, and
``stored_as`` maps attributes to keys of the file that differ from their names.

The file also identifies its run: the method, the seed, the options that determine the state,
and the result of one matvec. A run that differs in any of them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import numpy as np

from matfree import probes
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.state_file import StateFile
from matfree.arrays import epsilon, to_host
from matfree.protocol import HostArray, Seed
from matfree.results.files import archive

PathLike = str | os.PathLike[str]


@final
class Checkpoint:
    """The file of one run, which is opened before the run begins because it knows its seed.

    Parameters
    ----------
    path : path of the file, or None
        ``.npz`` is appended if it is missing. All processes of the space see the file; if
        vectors are sharded, every process writes its rows to a file next to it. With None
        nothing is stored, and every method does nothing.
    A : CountedOperator
        One matvec identifies the operator; it is counted like the others.
    seed : int, None or numpy.random.Generator
        None takes the seed of the file if there is one.

    Raises
    ------
    ValueError
        The file is damaged, or it is not a checkpoint.
    """

    def __init__(self, path: PathLike | None, A: CountedOperator, seed: Seed) -> None:
        self.A = A
        self.path = None if path is None else archive.file_path(path)
        self.file = None if self.path is None else StateFile(self.path, A.space)
        self.state: archive.Values = {} if self.file is None else self.file.values
        """The stored state of the run; empty for a new one."""
        self.seed = probes.agreed_seed(seed, A.space.all_gather_object)
        """The seed of the run, the same in all processes."""
        if seed is None and self.state:
            self.seed = int(self.state["problem"]["seed"])
        self.overhead = 0
        """Matvecs spent on identifying the operator, over all starts."""
        self._holders: tuple[Any, ...] = ()

    @property
    def is_stored(self) -> bool:
        """Whether there is a file."""
        return self.file is not None

    def sibling(self, suffix: str) -> Path | None:
        """The path of another checkpoint next to this one; None if there is no file.

        ``suffix`` is appended to the stem of its name.
        """
        return None if self.path is None else archive.sibling(self.path, suffix)

    def resume(self, problem: dict[str, Any], *holders: Any) -> None:
        """Restore the objects whose state makes up the run, and save them from now on.

        Parameters
        ----------
        problem : names and values that the file must have in common with this run
        *holders : objects whose attributes named in ``saved`` are the state

        Raises
        ------
        ValueError
            The file belongs to another run; the message says what differs.
        """
        self._holders = holders
        if self.file is None:
            return
        self.problem = {
            **problem,
            "shape": tuple(self.A.operator.shape),
            "dtype": to_host(self.A.space.zeros(0)).dtype.name,
        }
        # The matvec of the checksum is overhead: it must not reduce the budget of the run.
        stored, self.overhead = self.state, 1
        if stored:
            self._require_same(stored["problem"])
        self.checksum = _checksum_of(self.A)
        if stored:
            self._require_same_operator(stored.pop("operator_print"))
            del stored["problem"]
            self.A.num_matvecs += stored.pop("num_matvecs")
            self.overhead += stored.pop("overhead")
        for holder in holders:
            restore(holder, stored, self.A.space)

    def save(self) -> None:
        """Write the state of the run."""
        if self.file is None:
            return
        state: archive.Values = {}
        axes: dict[str, int] = {}
        for holder in self._holders:
            values, by_row = state_of(holder)
            state, axes = state | values, axes | by_row
        self.file.write(
            {
                "problem": self.problem,
                "operator_print": self.checksum,
                "num_matvecs": self.A.num_matvecs,
                "overhead": self.overhead,
                **state,
            },
            axes,
        )

    def has_object(self, name: str) -> bool:
        """Whether the file has a state under this name that was not restored yet."""
        return any(key.startswith(f"{name}.") for key in self.state)

    def resume_object(self, name: str, holder: Any) -> None:
        """Restore the state of an object that is created during the run.

        Only the first object of that name gets the stored state.
        """
        prefix = f"{name}."
        if self.has_object(name) and self._fits(holder, prefix):
            restore(holder, self.state, self.A.space, prefix)
        self.state = {k: value for k, value in self.state.items() if not k.startswith(prefix)}

    def _fits(self, holder: Any, prefix: str) -> bool:
        """Whether the block size is unchanged; otherwise the block is computed again."""
        stored = self.state.get(f"{prefix}V")
        return stored is None or stored.shape == tuple(holder.V.shape)

    def _require_same(self, stored: dict[str, Any]) -> None:
        different = [
            _difference(name, stored.get(name), value)
            for name, value in self.problem.items()
            if not _same_value(stored.get(name), value)
        ]
        if different:
            raise ValueError(
                f"checkpoint {self.path} belongs to another run: {'; '.join(different)}. Pass the "
                "arguments of the stored run, or give another path."
            )

    def _require_same_operator(self, stored: HostArray) -> None:
        scale = max(float(np.abs(stored[0])), float(np.abs(self.checksum[0])))
        # Another device or block size may sum in another order, so that only half of the
        # digits are compared.
        slack = epsilon(self.A.space.xp, self.A.space.dtype) ** 0.5
        if np.abs(stored - self.checksum).max() > slack * scale:
            raise ValueError(
                f"checkpoint {self.path} belongs to another operator: ||A u|| for a fixed vector "
                f"u is {stored[0]:.6g} in the file and {self.checksum[0]:.6g} in this run (other "
                "weights, other data?). Give another path, or delete the file."
            )


def state_of(holder: Any, prefix: str = "") -> tuple[archive.Values, dict[str, int]]:
    """The attributes that an object lists in ``saved``, and the row axes of those with rows.

    Both are returned by key; the keys of nested objects are joined by dots.
    """
    state: archive.Values = {}
    axes = {prefix + name: axis for name, axis in getattr(holder, "by_row", {}).items()}
    for name, key in _keys(holder, prefix):
        value = getattr(holder, name)
        if hasattr(value, "saved"):
            inner, inner_axes = state_of(value, f"{key}.")
            state, axes = state | inner, axes | inner_axes
        else:
            state[key] = tuple(value) if isinstance(value, list) else value
    return state, axes


def restore(holder: Any, state: archive.Values, space: Any, prefix: str = "") -> None:
    """Set the attributes of an object from a stored state.

    Arrays are converted to the library, dtype and device of the arrays that they replace.
    """
    for name, key in _keys(holder, prefix):
        current = getattr(holder, name)
        if hasattr(current, "saved"):
            restore(current, state, space, f"{key}.")
        elif key in state:
            setattr(holder, name, _like(current, state[key], space))


def _keys(holder: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """The attributes in ``saved`` and their keys in the file, as ``stored_as`` names them."""
    stored_as = getattr(holder, "stored_as", {})
    for name in holder.saved:
        yield name, prefix + stored_as.get(name, name)


def _like(current: Any, value: Any, space: Any) -> Any:
    if isinstance(current, list):
        return list(value)
    if isinstance(current, np.ndarray) or not hasattr(current, "shape"):
        return value
    return space.xp.asarray(np.asarray(value), dtype=current.dtype, device=space.device)


def _checksum_of(A: CountedOperator) -> HostArray:
    """||A u||, Re u^H A u and Im u^H A u for a fixed vector u that is not used otherwise."""
    u = A.space.probes(1, seed=0, kind="gaussian", stream=probes.CHECK)
    Au = A(u)
    if A.operator.shape[0] != A.operator.shape[1]:
        length = to_host(A.operator.space.norms(Au))[0]
        return np.array([length, 0.0, 0.0])
    length, form = to_host(A.space.norms(Au))[0], to_host(A.space.dots(u, Au))[0]
    norm = A.space.size**0.5  # E ||u||^2 = n: divided by it, all three numbers are comparable
    return np.array([length, np.real(form) / norm, np.imag(form) / norm])


def _same_value(left: Any, right: Any) -> bool:
    """Whether two values of a problem are equal; floating-point numbers up to rounding."""
    if isinstance(right, tuple) and isinstance(left, tuple) and len(left) == len(right):
        return all(map(_same_value, left, right))
    if isinstance(right, float) and isinstance(left, float):
        return left == right or bool(np.isclose(left, right, rtol=1e-9, atol=0, equal_nan=True))
    return bool(left == right)


def _difference(name: str, stored: Any, value: Any) -> str:
    if any(isinstance(x, tuple) and len(x) > 3 for x in (stored, value)):
        return f"{name} differs"
    return f"{name} is {stored!r} in the file and {value!r} in this run"
