"""The Lanczos recurrence with as many stored vectors as a budget of memory permits.

The first vectors are stored, and each is orthogonalized against all of them. If more steps are
necessary, the recurrence continues without reorthogonalization, from the last two stored vectors.
A linear combination of all vectors is then computed by a second run of those steps, which
repeats the same operations on the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from matfree.algorithms.krylov.bases import Bases
from matfree.algorithms.krylov.combinations import RunningCombination
from matfree.algorithms.krylov.recurrence import STEPS_PER_CHECK, Recurrence
from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray


@final
class PartlyStoredLanczos:
    """Independent recurrences of a block of start vectors, and combinations of their vectors.

    Parameters
    ----------
    A : CountedOperator
    start : (rows, k)
        The start vectors, none of which is zero.
    num_steps : int
        The largest number of steps.
    capacity : int
        The number of steps whose Lanczos vectors are stored, a multiple of STEPS_PER_CHECK.
    """

    saved = ("stored", "tail", "replay", "sums")

    def __init__(self, A: CountedOperator, start: Array, num_steps: int, capacity: int) -> None:
        assert capacity % STEPS_PER_CHECK == 0
        self.A, self.space, self.start = A, A.space, start
        self.num_steps, self.capacity = num_steps, capacity
        self.stored: Recurrence | None = None
        self.tail: Recurrence | None = None
        self.replay: Recurrence | None = None
        self._combinations: list[RunningCombination] = []
        self._resumed_sums: tuple[Array, ...] = ()
        if capacity:  # one vector more, from which the tail continues
            steps = min(num_steps, capacity + 1)
            self.stored = Recurrence(A, start, steps, reorthogonalize="full", keep_basis=True)

    @property
    def by_row(self) -> dict[str, int]:
        """The axes of rows in what a checkpoint stores."""
        return {"sums": 0} if self._combinations else {}

    @property
    def sums(self) -> tuple[Array, ...] | None:
        """The linear combinations so far, (rows, columns) per start vector, for a checkpoint."""
        return tuple(c.X for c in self._combinations) or None

    @sums.setter
    def sums(self, stored: tuple[Array, ...] | None) -> None:
        self._resumed_sums = stored or ()

    @property
    def active(self) -> Recurrence:
        """The recurrence that makes the next step."""
        found = self.stored if self.tail is None else self.tail
        assert found is not None
        return found

    @property
    def has_steps(self) -> bool:
        """Whether a step was made."""
        return self.tail is not None or (self.stored is not None and self.stored.step > 0)

    @property
    def _needs_tail(self) -> bool:
        """Whether the next step has no room among the stored vectors."""
        if self.stored is None:
            return self.tail is None
        more = self.stored.step == self.capacity and self.num_steps > self.capacity + 1
        return self.tail is None and more and not self.stored.finished

    def advance(self, checkpoint: Checkpoint) -> None:
        """Run the steps up to and including the next check point, and save the state.

        The tail of a resumed run is already at a check point.
        """
        if self._needs_tail:
            self.tail = self._continuation(self.num_steps)
            checkpoint.resume_object("tail", self.tail)
            if self.tail.step > self.capacity:  # resumed where convergence was checked last
                return
        if not self.active.finished:
            self.active.advance()
            checkpoint.save()

    def _continuation(self, num_steps: int) -> Recurrence:
        """A recurrence that continues after the stored vectors, in the same state every time."""
        run = Recurrence(self.A, self.start, num_steps, reorthogonalize="none", keep_basis=False)
        if self.stored is not None:
            assert isinstance(self.stored.bases, Bases)
            bases, last = self.stored.bases.arrays, self.capacity
            V, previous = run.V, run.previous
            for p, basis in enumerate(bases):
                V[:, p], previous[:, p] = basis[last, :], basis[last - 1, :]
            run.coefficients.entries = self.stored.coefficients.entries
            run.step = last
        return run

    def combine(
        self, Y: list[HostArray], checkpoint: Checkpoint, show: Callable[[int], None]
    ) -> list[Array]:
        """V_p Y_p, (rows, columns of Y_p), for the Lanczos vectors V_p of every start vector.

        Parameters
        ----------
        Y : per start vector (steps, columns), of at most as many steps as were made
        checkpoint : Checkpoint
        show : function
            It is called with the number of steps of the second run.
        """
        longest = max(len(y) for y in Y)
        self._combinations = [RunningCombination(self.space, p, y) for p, y in enumerate(Y)]
        num_known = self._add_known()
        if longest <= num_known:
            return [combination.X for combination in self._combinations]
        self.replay = self._continuation(longest)
        checkpoint.resume_object("replay", self.replay)
        if self._resumed_sums:
            for combination, X in zip(self._combinations, self._resumed_sums, strict=True):
                combination.X[:, :] = self.space.asarray(X)
        self.replay.listeners.append(self)
        while not self.replay.finished:
            self.replay.advance()
            checkpoint.save()
            show(self.replay.step)
        return [combination.X for combination in self._combinations]

    def append(self, V: Array, step: int) -> None:
        """Add the terms of a step of the second run."""
        for combination in self._combinations:
            combination.append(V, step)

    def _add_known(self) -> int:
        """Add the terms of the stored vectors, or of the first one; return how many there are."""
        if self.stored is None:
            norms = self.space.asarray(to_host(self.space.norms(self.start)))
            self.append(self.start / norms[None, :], 0)
            return 1
        assert isinstance(self.stored.bases, Bases)
        for basis, combination in zip(self.stored.bases.stored, self._combinations, strict=True):
            y = combination.Y[: basis.shape[0], :]
            if y.shape[1]:
                combination.X = basis[: y.shape[0], :].T @ self.space.asarray(y)
        return int(self.stored.bases.size)
