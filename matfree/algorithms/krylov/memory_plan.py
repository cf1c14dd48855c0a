"""How Lanczos vectors are stored within a budget of memory, and the peak memory that results.

A full basis consists of num_steps vectors for each start vector that runs at the time. If it
exceeds the budget, the following schemes are considered in this order:

1. fewer start vectors run at a time;
2. the basis is stored in scaled 16-bit numbers (``HalfBases``);
3. no basis is stored. The bare recurrence produces copies of converged eigenvalues.

The first one does not change the results. The error bounds of the results cover the loss of
accuracy of the others. Ritz vectors are available without a basis, by running the recurrence a
second time (:func:`matfree.ritz_vectors`).
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

_NOISE_VECTORS = 8  # vectors that repeating a matvec to measure its noise requires


@final
@dataclass(frozen=True)
class StorageScheme:
    """How the Lanczos vectors of a run are stored, and its peak memory on this process."""

    reorthogonalize: Reorthogonalize
    at_once: int
    """The number of start vectors that run at a time."""
    keep_basis: bool
    """Whether the result contains the basis."""
    predicted: int = 0
    """The peak memory in bytes, without that of the operator itself."""
    budget: int | None = None
    """The budget in bytes; None if there is none."""

    @property
    def memory(self) -> dict[str, Any]:
        """The description in results; empty if there is no budget."""
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
    """The memory that a Lanczos run requires, as a function of the storage scheme.

    Parameters
    ----------
    space : VectorSpace
    num_steps : int
    num_vectors : int
        Vectors that are stored from beginning to end: start vectors and eigenvectors.
    num_projected : int
        Eigenvectors that are projected out of every matvec.
    bytes_before : int
        The peak memory of what precedes the recurrence.
    num_bases : int
        The start vectors whose bases the result contains, if bases are returned.
    checkpointed : bool
        Whether a checkpoint copies the state, which includes the basis, to write it.
    measures_noise : bool
        Whether a matvec is repeated to measure its noise.
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
        """The peak memory on this process: exact for NumPy, an upper bound for other libraries."""
        runs, vector = storage.at_once, vector_bytes(self.space)
        vectors = self.num_vectors + (_NOISE_VECTORS if self.measures_noise else 0)
        basis = self._basis_bytes(storage, vector)
        working = self._num_working_vectors(storage) * vector
        copies = 0
        if self.checkpointed:  # a copy of the state, and of the array that is being written
            copies = basis + basis // runs + 2 * runs * vector
        run = basis + working + max(copies, self._slab_bytes(storage, vector))
        return int(max(self.bytes_before, vectors * vector + run))

    def _slab_bytes(self, storage: StorageScheme, vector: int) -> int:
        """The slabs that are converted: vectors to double precision, or bases from 16 bits."""
        if not self._is_converted and storage.reorthogonalize != "half":
            return 0
        two = 2 * slab_bytes(self.space.device)  # one slab of each factor
        # Complex vectors: real and imaginary parts, and their combination.
        slabs = two * 3 // 2 if self._complex else two
        return min(slabs, 4 * self.num_steps * storage.at_once * vector)

    @property
    def _is_converted(self) -> bool:
        """Whether inner products convert blocks to another data type, double precision."""
        space = self.space
        return bool(widest(space.xp, space.dtype, space.device) != space.dtype)

    @property
    def _complex(self) -> bool:
        return is_complex(self.space.xp, self.space.dtype)

    def _basis_bytes(self, storage: StorageScheme, vector: int) -> int:
        if storage.reorthogonalize == "half":
            half_vector = 2 * len(self.space.rows) * (2 if self._complex else 1)
            return storage.at_once * self.num_steps * half_vector
        if storage.keep_basis and self.num_bases:
            return self.num_bases * self.num_steps * vector
        full = storage.reorthogonalize == "full"
        return storage.at_once * self.num_steps * vector if full else 0

    def _num_working_vectors(self, storage: StorageScheme) -> int:
        """The vectors in addition to the basis, at the moment when there are most of them."""
        # Counted in the code of ``Recurrence``; a test compares them with the allocated memory.
        runs, k = storage.at_once, self.num_projected
        projecting = runs + k if k else 0
        return (6 * runs + 2 if storage.reorthogonalize == "full" else 8 * runs) + projecting


def vector_bytes(space: VectorSpace) -> int:
    """The bytes of the local rows of one vector."""
    parts = 2 if is_complex(space.xp, space.dtype) else 1
    return int(len(space.rows) * parts * space.xp.finfo(space.dtype).bits // 8)


def require_bytes(memory: int | None) -> None:
    """Raise ValueError unless ``memory`` is None or a number of bytes."""
    whole = hasattr(memory, "__index__") and not isinstance(memory, bool)
    if memory is not None and (not whole or memory < 0):
        raise ValueError(
            f"memory must be a number of bytes, 0 or more, or None: got {memory!r}; pass an int, "
            "such as 2 * 1024**3."
        )


def choose_storage(model: MemoryModel, wanted: StorageScheme, memory: int | None) -> StorageScheme:
    """The first storage scheme that fits the budget on every process.

    Parameters
    ----------
    model : MemoryModel
    wanted : StorageScheme
        The requested scheme, which is the first candidate.
    memory : int or None
        The budget in bytes on this process; None returns the requested scheme.

    Raises
    ------
    ValueError
        ``memory`` is not a number of bytes.
    MemoryError
        Even one start vector at a time without a basis does not fit.
    """
    require_bytes(memory)
    if memory is None:
        return wanted
    schemes = [
        replace(scheme, predicted=model.peak_bytes(scheme), budget=int(memory))
        for scheme in _candidates(model, wanted)
    ]
    too_much = np.asarray([float(scheme.predicted > memory) for scheme in schemes])
    space = model.space  # every process must choose the same scheme, which fits all of them
    misfits = np.real(to_host(space.all_reduce(space.asarray(too_much))))
    if misfits.all():
        raise MemoryError(_memory_message(schemes, int(memory)))
    return schemes[int(np.argmin(misfits > 0))]


def _candidates(model: MemoryModel, wanted: StorageScheme) -> Iterator[StorageScheme]:
    """All schemes in order of preference: accuracy, then a returned basis, then parallelism."""
    kinds: list[Reorthogonalize] = ["full", "half", "none"]
    for kind in kinds[kinds.index(wanted.reorthogonalize) :]:
        if kind == "half" and half_type(model.space.xp) is None:
            continue
        possible = kind == wanted.reorthogonalize and kind != "half"
        for keep in (True, False) if wanted.keep_basis and possible else (False,):
            for count in range(wanted.at_once, 0, -1):
                yield replace(wanted, reorthogonalize=kind, keep_basis=keep, at_once=count)


def _memory_message(schemes: list[StorageScheme], memory: int) -> str:
    """The message of the MemoryError."""
    least = min(scheme.predicted for scheme in schemes)
    if least <= memory:
        return (
            f"memory={memory} ({readable(memory)}) is sufficient for the rows of this process, but "
            "not for those of another; raise it there, or distribute the rows evenly."
        )
    return (
        f"memory={memory} ({readable(memory)}) is too small: the minimum is {least} bytes "
        f"({readable(least)}), for one start vector at a time without a basis; pass "
        f"memory={least}."
    )
