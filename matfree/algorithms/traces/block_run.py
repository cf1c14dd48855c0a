"""The run behind ``block_traces``: whose turn it is, and what each block knows by now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import CHECK_GROWTH, FIRST_CHECK, Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.run import Run
from matfree.algorithms.traces.hutchinson import Samples
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray
from matfree.results import Estimate, StoppingReason

Estimates: TypeAlias = dict[str, Estimate]


class Block(NamedTuple):
    """Consecutive coordinates with a name."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def within(self, rows: range) -> slice:
        """Where they lie in an array that holds only some rows."""
        length = len(rows)
        return slice(
            min(max(self.start - rows.start, 0), length),
            min(max(self.stop - rows.start, 0), length),
        )


class Job(NamedTuple):
    """Vectors to be sent for one block: probes, or unit vectors, by number."""

    block: int
    numbers: range
    exact: bool


@final
class BlockLoop:
    """One estimation of all blocks.

    Parameters
    ----------
    product : the operator, counted
    plan : how many probes a block, or how well and for how many products
    blocks : the blocks
    joint : whether one probe serves all of them
    run : asks the callback after every block of vectors
    """

    saved = ("values", "totals", "num_units")

    def __init__(
        self,
        A: CountedOperator,
        plan: Plan,
        blocks: list[Block],
        run: Run[Estimates],
        *,
        joint: bool,
    ) -> None:
        self.A, self.space, self.plan, self.blocks = A, A.space, plan, blocks
        self.run, self.joint = run, joint
        self.samples = [Samples() for _ in blocks]
        kind = np.result_type(to_host(self.space.zeros(0)).dtype, np.float64)
        self.totals: HostArray = np.zeros(len(blocks), dtype=kind)  # of unit vectors
        self.num_units: list[int] = [0] * len(blocks)
        self.stopped = False

    @property
    def values(self) -> tuple[HostArray, ...]:
        """The samples of every block."""
        return tuple(samples.values for samples in self.samples)

    @values.setter
    def values(self, stored: tuple[HostArray, ...]) -> None:
        for samples, values in zip(self.samples, stored, strict=True):
            samples.values = values

    @property
    def started(self) -> bool:
        """Whether there is anything to report of every block."""
        return all(v.size or units for v, units in zip(self.values, self.num_units, strict=True))

    def problem(self) -> dict[str, Any]:
        """What a checkpoint must share with this run."""
        return {
            "estimator": "block_traces",
            "seed": self.plan.seed,
            "kind": self.plan.kind,
            "first_probe": self.plan.first_probe,
            "joint": self.joint,
            "partition": tuple(tuple(block) for block in self.blocks),
        }

    def complete(self) -> Estimates:
        """Send probes for every block that still needs some, round after round."""
        self.run.checkpoint.resume(self.problem(), self)
        target = float(self.plan.num_probes or FIRST_CHECK)
        while not self.stopped:
            jobs = self._jobs(int(target))
            for batch in self._batches(jobs):
                self._send(batch)
                if self.started and self.run.is_stopped(self.estimates):
                    self.stopped = True
                    return self.estimates()
            num_met = sum(map(self._met, range(len(self.blocks))))
            self.run.bar.show(num_met)
            if not self.plan.adaptive or num_met == len(self.blocks):
                break
            if not jobs and self._left < 1:
                break
            target *= CHECK_GROWTH
        return self.estimates()

    def interrupted(self) -> Estimates | None:
        """The estimates when the user interrupts the run; None before every block has one."""
        return self.estimates() if self.started else None

    def estimates(self) -> Estimates:
        """The estimates as they stand."""
        return {block.name: self._estimate(b) for b, block in enumerate(self.blocks)}

    @property
    def _left(self) -> int:
        """Products that the budget still has."""
        if not self.plan.adaptive:
            return 1 << 62
        return self.plan.budget + self.run.checkpoint.overhead - self.A.num_matvecs

    def _jobs(self, target: int) -> list[Job]:
        """What brings every block that is not done to ``target`` probes, or to the end."""
        left, jobs = self._left, []
        if self.joint:
            return self._joint_jobs(target, left)
        for b, block in enumerate(self.blocks):
            done = self.samples[b].values.size
            if self._met(b):
                continue
            missing = block.size - self.num_units[b]
            if self.plan.adaptive and target >= block.size and missing <= left:
                job = self._exact_job(b)  # no more products than probes will have taken
            else:
                job = Job(b, range(done, min(target, done + left)), False)
            left -= len(job.numbers)
            if len(job.numbers):
                jobs.append(job)
        return jobs

    def _joint_jobs(self, target: int, left: int) -> list[Job]:
        """Probes that serve every block, or the unit vectors of all blocks."""
        if all(map(self._met, range(len(self.blocks)))):
            return []
        size = sum(block.size for block in self.blocks)
        if self.plan.adaptive and target >= size and size - sum(self.num_units) <= left:
            return [self._exact_job(b) for b in range(len(self.blocks))]
        done = self.samples[0].values.size
        numbers = range(done, min(target, done + left))
        return [Job(0, numbers, False)] if len(numbers) else []

    def _exact_job(self, b: int) -> Job:
        """The unit vectors of a block that are left."""
        return Job(b, range(self.num_units[b], self.blocks[b].size), True)

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """The jobs cut and packed so that each batch fills a block of vectors."""
        batch: list[Job] = []
        room = self.plan.block_size
        for block, numbers, exact in jobs:
            while len(numbers):
                now, numbers = numbers[:room], numbers[room:]
                batch.append(Job(block, now, exact))
                room -= len(now)
                if room == 0:
                    yield batch
                    batch, room = [], self.plan.block_size
        if batch:
            yield batch

    def _send(self, batch: list[Job]) -> None:
        """One product of a block of vectors, and what it says of each job's block."""
        X = self.space.xp.concat([self._vectors(job) for job in batch], axis=1)
        Y = self.A(X)
        if self.joint and not batch[0].exact:
            for b, block in enumerate(self.blocks):
                rows = block.within(self.space.rows)
                self._take(Job(b, batch[0].numbers, False), X[rows, :], Y[rows, :])
        else:
            begin = 0
            for job in batch:
                columns = slice(begin, begin + len(job.numbers))
                self._take(job, X[:, columns], Y[:, columns])
                begin += len(job.numbers)
        self.run.save()

    def _vectors(self, job: Job) -> Array:
        """Unit vectors of a block, or probes that are zero outside of it."""
        block, xp = self.blocks[job.block], self.space.xp
        if job.exact:
            numbers = range(block.start + job.numbers.start, block.start + job.numbers.stop)
            return self.space.unit_vectors(numbers)
        W = self.space.probes(
            len(job.numbers),
            seed=self.plan.seed,
            start=self.plan.first_probe + job.numbers.start,
            kind=self.plan.kind,
        )
        if self.joint:
            return W
        rows, device = self.space.rows, self.space.device
        row = xp.arange(rows.start, rows.stop, dtype=xp.int64, device=device)
        inside = (row >= block.start) & (row < block.stop)
        return xp.where(inside[:, None], W, xp.zeros_like(W))

    def _take(self, job: Job, X: Array, Y: Array) -> None:
        fresh = to_host(self.space.dots(X, Y))
        self.A.require_finite(fresh)
        if job.exact:
            self.totals[job.block] += fresh.sum().item()
            self.num_units[job.block] += len(job.numbers)
        else:
            self.samples[job.block].add(fresh)

    def _summary(self, b: int) -> Summary:
        if self.num_units[b] == self.blocks[b].size:  # exact, however many probes went before
            total = self.totals[b].item()
            return Summary(total, 0.0, abs(total), 0.0, math.inf)
        return self.samples[b].summary()

    def _met(self, b: int) -> bool:
        """Whether a block needs no more products: looked at after fixed numbers of probes."""
        done = self.samples[b].values.size
        if self.num_units[b] == self.blocks[b].size or not self.plan.adaptive:
            return self._within(b)
        check_point = float(FIRST_CHECK)
        while int(check_point) < done:
            check_point *= CHECK_GROWTH
        return int(check_point) == done and self._within(b)

    def _within(self, b: int) -> bool:
        """Whether a block is known as well as was asked."""
        done = self.samples[b].values.size
        if not self.plan.adaptive:
            return done >= (self.plan.num_probes or 0)
        summary = self._summary(b)
        return summary.half_width <= self.plan.tolerance(summary.size)

    def _estimate(self, b: int) -> Estimate:
        summary, block = self._summary(b), self.blocks[b]
        exact = self.num_units[b] == block.size
        done = 0 if exact else self.samples[b].values.size
        converged = exact or self._within(b)
        if exact:
            reason = StoppingReason.EXACT
        elif not converged:
            reason = StoppingReason.CALLBACK if self.stopped else StoppingReason.BUDGET
        else:
            reason = StoppingReason.TOLERANCE if self.plan.adaptive else StoppingReason.ALL_PROBES
        own = self.samples[b].values.size + self.num_units[b]
        first = self.plan.first_probe
        return Estimate(
            value=summary.value,
            stderr=summary.stderr,
            method="exact" if exact else "hutchinson",
            num_probes=done,
            num_matvecs=self.A.num_matvecs if self.joint else own,
            degrees_of_freedom=summary.degrees_of_freedom,
            converged=converged,
            reason=reason,
            seed=self.plan.seed,
            kind=self.plan.kind,
            size=block.size,
            samples=summary.samples,
            probe_ranges=((first, first + done),) if done else (),
            mergeable=done > 0,
        )
