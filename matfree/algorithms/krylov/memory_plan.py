"""How Lanczos vectors are kept within a budget of memory: the choice, and what it takes.

A full basis is m vectors for each start vector that runs at the time. Where that is more than
the budget, in this order:

1. fewer start vectors run together;
2. the basis is kept in scaled 16-bit numbers (:class:`matfree.algorithms.bases.HalfBases`);
3. no basis is kept: the bare recurrence, whose nodes repeat.

The numbers of the first are those of any block size. What the second and third cost in accuracy
is in the result's error bounds. Where vectors are wanted again, the recurrence is run again
(:func:`matfree.ritz_vectors`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from matfree.algorithms.krylov.recurrence import Reorthogonalize
from matfree.arrays import half_type, is_complex, slab_bytes, to_host, widest
from matfree.results.record import readable
from matfree.spaces import VectorSpace

_NOISE_VECTORS = 8  # vectors behind a repeated product


@final
@dataclass(frozen=True)
class StorageScheme:
    """One way to keep the vectors of a run, and the most memory it takes on this process."""

    reorthogonalize: Reorthogonalize
    at_once: int
    """Start vectors that run together."""
    keep_basis: bool
    predicted: int = 0
    """Bytes at the peak, without what the operator itself needs."""
    budget: int | None = None

    @property
    def memory(self) -> dict[str, Any]:
        """What a result says of it; nothing where there was no budget."""
        if self.budget is None:
            return {}
        return {
            "basis": self.reorthogonalize,
            "at_once": self.at_once,
            "predicted": self.predicted,
            "budget": self.budget,
        }


@final
@dataclass(frozen=True)
class MemoryModel:
    """What a run by Lanczos holds, whatever the budget.

    Parameters
    ----------
    space : of the vectors
    num_steps : int
    vectors : int
        Kept from beginning to end: start vectors, eigenvectors.
    num_known : int
        Eigenvectors that every product is projected off.
    before : int
        Bytes at the peak of what comes before the recurrence.
    num_kept : int
        Start vectors whose bases the result holds, if they are kept.
    copied : bool
        Whether a checkpoint copies the state, the basis among it, to write it.
    repeated : bool
        Whether a product is repeated to measure its noise.
    """

    space: VectorSpace
    num_steps: int
    num_vectors: int = 0
    num_projected: int = 0
    bytes_before: int = 0
    num_bases: int = 0
    checkpointed: bool = False
    measures_noise: bool = False

    def peak_bytes(self, storage: StorageScheme) -> int:
        """The peak on this process: counted for NumPy, an upper bound elsewhere."""
        space, runs = self.space, storage.at_once
        vector = vector_bytes(space)
        vectors = self.num_vectors + (_NOISE_VECTORS if self.measures_noise else 0)
        basis = self._basis(storage, vector)
        state = (
            basis + basis // runs + 2 * runs * vector if self.checkpointed else 0
        )  # and one to write
        run = basis + self._working(storage) * vector + max(state, self._slabs(storage, vector))
        return int(max(self.bytes_before, vectors * vector + run))

    def _slabs(self, storage: StorageScheme, vector: int) -> int:
        """What is converted at a time: vectors to double, a basis in 16 bits to their type."""
        if not self._narrow and storage.reorthogonalize != "half":
            return 0
        two = 2 * slab_bytes(self.space.device)  # one of each factor
        slabs = two * 3 // 2 if self._complex else two  # real and imaginary parts, and both
        return min(slabs, 4 * self.num_steps * storage.at_once * vector)

    @property
    def _narrow(self) -> bool:
        """Whether inner products are made of blocks in another type, which is double."""
        space = self.space
        return bool(widest(space.xp, space.dtype, space.device) != space.dtype)

    @property
    def _complex(self) -> bool:
        return is_complex(self.space.xp, self.space.dtype)

    def _basis(self, storage: StorageScheme, vector: int) -> int:
        if storage.reorthogonalize == "half":
            half_vector = 2 * len(self.space.rows) * (2 if self._complex else 1)
            return storage.at_once * self.num_steps * half_vector
        if storage.keep_basis and self.num_bases:
            return self.num_bases * self.num_steps * vector
        full = storage.reorthogonalize == "full"
        return storage.at_once * self.num_steps * vector if full else 0

    def _working(self, storage: StorageScheme) -> int:
        """Vectors beside the basis, counted where the most of them are alive."""
        runs, k = storage.at_once, self.num_projected
        projecting = runs + k if k else 0
        return (6 * runs + 2 if storage.reorthogonalize == "full" else 8 * runs) + projecting


def vector_bytes(space: VectorSpace) -> int:
    """What a vector takes on this process."""
    parts = 2 if is_complex(space.xp, space.dtype) else 1
    return int(len(space.rows) * parts * space.xp.finfo(space.dtype).bits // 8)


def require_bytes(memory: int | None) -> None:
    """Refuse what is no budget."""
    whole = hasattr(memory, "__index__") and not isinstance(memory, bool)
    if memory is not None and (not whole or memory < 0):
        raise ValueError(f"memory must be a number of bytes, 0 or more, or None: got {memory!r}.")


def choose_storage(need: MemoryModel, wanted: StorageScheme, memory: int | None) -> StorageScheme:
    """The first way to keep vectors that fits everywhere, from the one that is wanted down.

    Raises
    ------
    ValueError
        ``memory`` is no number of bytes.
    MemoryError
        Not even one start vector at a time without a basis fits.
    """
    require_bytes(memory)
    if memory is None:
        return wanted
    ways = [
        replace(way, predicted=need.peak_bytes(way), budget=int(memory))
        for way in _candidates(need, wanted)
    ]
    too_much = np.asarray([float(way.predicted > memory) for way in ways])
    space = need.space  # every process must take the same way: one that fits all of them
    misfits = np.real(to_host(space.all_reduce(space.asarray(too_much))))
    if misfits.all():
        raise MemoryError(_refusal(ways, int(memory)))
    return ways[int(np.argmin(misfits > 0))]


def _candidates(need: MemoryModel, wanted: StorageScheme) -> Iterator[StorageScheme]:
    """All ways in order: as precise as possible, then a basis kept, then many at once."""
    kinds: list[Reorthogonalize] = ["full", "half", "none"]
    for kind in kinds[kinds.index(wanted.reorthogonalize) :]:
        if kind == "half" and half_type(need.space.xp) is None:
            continue
        possible = kind == wanted.reorthogonalize and kind != "half"
        for keep in (True, False) if wanted.keep_basis and possible else (False,):
            for count in range(wanted.at_once, 0, -1):
                yield replace(wanted, reorthogonalize=kind, keep_basis=keep, at_once=count)


def _refusal(ways: list[StorageScheme], memory: int) -> str:
    least = min(way.predicted for way in ways)
    if least <= memory:
        return (
            f"memory={memory} ({readable(memory)}) is enough for the rows of this process, and too "
            "little for those of another; raise it there, or spread the rows evenly."
        )
    return (
        f"memory={memory} ({readable(memory)}) is too little: {least} bytes ({readable(least)}) is "
        "the least that is enough, for one vector at a time, no basis, and what comes before; "
        f"pass memory={least}."
    )
