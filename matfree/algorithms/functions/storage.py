"""How many Lanczos vectors are stored within a budget of memory, and how many steps are made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from matfree.algorithms.krylov.memory_plan import require_bytes, vector_bytes
from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK
from matfree.arrays import to_host
from matfree.results.record import readable
from matfree.spaces import VectorSpace

_DEFAULT_BASIS = 1 << 30  # bytes for Lanczos vectors if no budget is given

MOST_STEPS = 2000
"""The largest number of steps if no budget of matvecs is given."""

_CAPACITIES = [
    0,
    *sorted({STEPS_PER_CHECK * int(2 ** (i / 4)) for i in range(33)}),
]  # up to 2048 steps


class PartialStorage(NamedTuple):
    """The number of steps whose vectors are stored, and what this takes."""

    capacity: int
    memory: dict[str, Any]


def choose_capacity(
    space: VectorSpace, width: int, num_values: int, memory: int | None, *, checkpointed: bool
) -> PartialStorage:
    """The largest number of stored Lanczos vectors that fits the budget on every process.

    Parameters
    ----------
    space : VectorSpace
    width : int
        The number of start vectors.
    num_values : int
        The number of vectors of the result.
    memory : int or None
        The budget in bytes on this process.
    checkpointed : bool
        Whether a checkpoint copies the state.

    Raises
    ------
    MemoryError
        The budget does not suffice for the recurrence without stored vectors.
    """
    require_bytes(memory)
    vector = vector_bytes(space)
    least = (10 * width + 2 + 3 * num_values) * vector
    per_step = width * vector * (3 if checkpointed else 1)
    budget = least + _DEFAULT_BASIS if memory is None else memory
    peaks = [least + per_step * (c + 1 if c else 0) for c in _CAPACITIES]
    misfits = np.asarray([float(peak > budget) for peak in peaks])
    # Every process must choose the same number, which fits all of them.
    misfits = np.real(to_host(space.all_reduce(space.asarray(misfits))))
    if misfits[0]:
        raise MemoryError(
            f"memory={memory} ({readable(budget)}) is too small for {width} start vectors without "
            f"a stored basis, which take {peaks[0]} bytes ({readable(peaks[0])}) on this process; "
            f"pass memory={peaks[0]} or fewer columns of B."
        )
    last = int(np.flatnonzero(misfits == 0)[-1])
    description = {}
    if memory is not None:
        description = {
            "basis": "full" if last else "none",
            "at_once": width,
            "stored": _CAPACITIES[last],
            "predicted": peaks[last],
            "budget": int(memory),
        }
    return PartialStorage(_CAPACITIES[last], description)


def largest_steps(size: int, width: int, capacity: int, max_matvecs: int | None) -> int:
    """The number of steps that a budget of matvecs permits, a second run included."""
    # Without reorthogonalization, more steps than n may be necessary.
    complete = min(size, MOST_STEPS)
    most = complete if complete <= capacity + 1 else min(MOST_STEPS, 4 * size)
    if max_matvecs is None:
        return most
    steps = max_matvecs // width
    if steps > capacity + 1:
        steps = max(capacity + 1, capacity + (steps - capacity) // 2)
    return min(most, steps)
