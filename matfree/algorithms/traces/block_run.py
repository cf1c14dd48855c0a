"""The sampling loop behind ``block_traces``, which samples many diagonal blocks at once."""

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
from matfree.algorithms.traces.partition import Block
from matfree.algorithms.traces.product_variance import BlockVariances
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray
from matfree.results import Estimate, StoppingReason

Estimates: TypeAlias = dict[str, Estimate]


class Job(NamedTuple):
    """Vectors that the operator is to be applied to for one block."""

    block: int
    """The index of the block."""
    indices: range
    """The indices of the probes, or of the unit vectors within the block."""
    exact: bool
    """Whether the vectors are unit vectors."""


def _of_samples(name: str) -> Any:
    """An attribute of the samples of all blocks, in the form in which a checkpoint stores it."""

    def set_all(loop: BlockLoop, stored: tuple[HostArray, ...]) -> None:
        for samples, array in zip(loop.samples, stored, strict=True):
            setattr(samples, name, array)

    return property(lambda loop: tuple(getattr(s, name) for s in loop.samples), set_all)


@final
class BlockLoop:
    """The estimation of the traces of all diagonal blocks.

    Parameters
    ----------
    A : CountedOperator
    plan : Plan
        Probes per block, or the tolerance and the budget of all blocks together.
    blocks : list of Block
    run : Run
        Progress, callback and checkpoint, after every block of vectors.
    joint : bool
        Whether every probe is used for all diagonal blocks.
    """

    saved = ("values", "deviations", "variances", "totals", "num_units")
    values, deviations = _of_samples("values"), _of_samples("deviations")

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
        self.samples = [Samples(plan.kind, A.space.size) for _ in blocks]
        parts = [block.within(self.space.rows) for block in blocks]
        self.variances = BlockVariances(self.space, plan.kind, parts, joint=joint)
        kind = np.result_type(to_host(self.space.zeros(0)).dtype, np.float64)
        self.totals: HostArray = np.zeros(len(blocks), dtype=kind)  # sums over unit vectors
        self.num_units: list[int] = [0] * len(blocks)
        self.stopped = False

    @property
    def started(self) -> bool:
        """Whether there is an estimate of every block."""
        return all(map(self._has_estimate, range(len(self.blocks))))

    def _has_estimate(self, b: int) -> bool:
        return bool(self.samples[b].values.size or self.num_units[b] == self.blocks[b].size)

    def problem(self) -> dict[str, Any]:
        """The arguments that a checkpoint must have in common with this run."""
        return {
            "estimator": "block_traces",
            "seed": self.plan.seed,
            "kind": self.plan.kind,
            "first_probe": self.plan.first_probe,
            "joint": self.joint,
            "partition": tuple(tuple(block) for block in self.blocks),
        }

    def complete(self) -> Estimates:
        """Sample the blocks that have not converged, in rounds of growing numbers of probes."""
        self.run.checkpoint.resume(self.problem(), self)
        target = float(self.plan.num_probes or FIRST_CHECK)
        while not self.stopped:
            jobs = self._jobs(int(target))
            for batch in self._batches(jobs):
                self._evaluate(batch)
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
        """The estimates from the vectors so far."""
        return {block.name: self._estimate(b) for b, block in enumerate(self.blocks)}

    @property
    def _left(self) -> int:
        """Matvecs that are left of the budget."""
        if not self.plan.adaptive:
            return 1 << 62  # no limit
        return self.plan.budget + self.run.checkpoint.overhead - self.A.num_matvecs

    def _jobs(self, target: int) -> list[Job]:
        """Jobs that bring each unfinished block to ``target`` probes or to its exact trace."""
        left, jobs = self._left, []
        if self.joint:
            return self._joint_jobs(target, left)
        waiting = sum(not self._has_estimate(b) for b in range(len(self.blocks)))
        for b, block in enumerate(self.blocks):
            done = self.samples[b].values.size
            if self._met(b):
                continue
            waiting -= not self._has_estimate(b)
            free = left - waiting  # every later block without an estimate needs one matvec
            missing = block.size - self.num_units[b]
            if self.plan.adaptive and target >= block.size and missing <= free:
                job = self._exact_job(b)  # at most as many matvecs as sampling would take
            else:
                job = Job(b, range(done, min(target, done + free)), False)
            left -= len(job.indices)
            if len(job.indices):
                jobs.append(job)
        return jobs

    def _joint_jobs(self, target: int, left: int) -> list[Job]:
        """Jobs whose probes are used for every block, or the unit vectors of all blocks."""
        if all(map(self._met, range(len(self.blocks)))):
            return []
        size = sum(block.size for block in self.blocks)
        if self.plan.adaptive and target >= size and size - sum(self.num_units) <= left:
            return [self._exact_job(b) for b in range(len(self.blocks))]
        done = self.samples[0].values.size
        indices = range(done, min(target, done + left))
        return [Job(0, indices, False)] if len(indices) else []

    def _exact_job(self, b: int) -> Job:
        """The remaining unit vectors of a block."""
        return Job(b, range(self.num_units[b], self.blocks[b].size), True)

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """The jobs split and combined so that every batch is one full block of vectors."""
        batch: list[Job] = []
        free = self.plan.block_size
        for block, indices, exact in jobs:
            while len(indices):
                now, indices = indices[:free], indices[free:]
                batch.append(Job(block, now, exact))
                free -= len(now)
                if free == 0:
                    yield batch
                    batch, free = [], self.plan.block_size
        if batch:
            yield batch

    def _evaluate(self, batch: list[Job]) -> None:
        """Apply the operator to the vectors of a batch, and record the samples of its jobs."""
        X = self.space.xp.concat([self._vectors(job) for job in batch], axis=1)
        Y = self.A(X)
        if self.joint and not batch[0].exact:
            self.variances.compare(lambda: self._vectors(Job(0, range(1), False)), X, Y)
            for b in range(len(self.blocks)):
                self._record(Job(b, batch[0].indices, False), X, Y)
        else:
            begin = 0
            for job in batch:
                columns = slice(begin, begin + len(job.indices))
                self._record(job, X[:, columns], Y[:, columns])
                begin += len(job.indices)
        self.run.save()

    def _vectors(self, job: Job) -> Array:
        """The unit vectors of a job, or its probes, which are zero outside its block."""
        block, xp = self.blocks[job.block], self.space.xp
        if job.exact:
            indices = range(block.start + job.indices.start, block.start + job.indices.stop)
            return self.space.unit_vectors(indices)
        W = self.space.probes(
            len(job.indices),
            seed=self.plan.seed,
            start=self.plan.first_probe + job.indices.start,
            kind=self.plan.kind,
        )
        if self.joint:
            return W
        rows, device = self.space.rows, self.space.device
        row = xp.arange(rows.start, rows.stop, dtype=xp.int64, device=device)
        inside = (row >= block.start) & (row < block.stop)
        return xp.where(inside[:, None], W, xp.zeros_like(W))

    def _record(self, job: Job, X: Array, Y: Array) -> None:
        """Add the quadratic forms x_j^H y_j to the results of a block."""
        b, rows = job.block, self.variances.parts[job.block]
        if job.exact:
            fresh = to_host(self.space.dots(X, Y))
            self.A.require_finite(fresh)
            self.totals[b] += fresh.sum().item()
            self.num_units[b] += len(job.indices)
            return

        def first() -> Array:
            return self._vectors(Job(b, range(1), False))[rows, :]

        fresh, deviations = self.variances.blocks[b].add(first, X[rows, :], Y[rows, :])
        self.A.require_finite(fresh)
        self.samples[b].add(fresh, deviations)

    def _summary(self, b: int) -> Summary:
        if self.num_units[b] == self.blocks[b].size:  # exact: earlier samples are not needed
            total = self.totals[b].item()
            return Summary(total, 0.0, abs(total), 0.0, math.inf)
        summary = self.samples[b].summary(self.variances.hermitian(b))
        return summary._replace(widening=self.plan.widening)

    def _met(self, b: int) -> bool:
        """Whether a block is finished; tolerances are checked after fixed numbers of probes."""
        done = self.samples[b].values.size
        if self.num_units[b] == self.blocks[b].size or not self.plan.adaptive:
            return self._within(b)
        # Checks between these numbers would let the block size decide when sampling stops.
        check_point = float(FIRST_CHECK)
        while int(check_point) < done:
            check_point *= CHECK_GROWTH
        return int(check_point) == done and self._within(b)

    def _within(self, b: int) -> bool:
        """Whether the estimate of a block is as accurate as requested."""
        done = self.samples[b].values.size
        if not self.plan.adaptive:
            return done >= (self.plan.num_probes or 0)
        summary = self._summary(b)
        enough = done >= FIRST_CHECK or self.num_units[b] == self.blocks[b].size
        return enough and summary.half_width <= self.plan.tolerance(summary.norm)

    def _estimate(self, b: int) -> Estimate:
        summary, block = self._summary(b), self.blocks[b]
        exact = self.num_units[b] == block.size
        done = 0 if exact else self.samples[b].values.size
        converged = exact or (self._within(b) and math.isfinite(summary.half_width))
        if exact:
            reason = StoppingReason.EXACT
        elif not converged:
            reason = StoppingReason.CALLBACK if self.stopped else StoppingReason.BUDGET
        else:
            reason = StoppingReason.TOLERANCE if self.plan.adaptive else StoppingReason.ALL_PROBES
        num_own = self.samples[b].values.size + self.num_units[b]
        first = self.plan.first_probe
        return Estimate(
            value=summary.value,
            stderr=summary.stderr,
            method="exact" if exact else "hutchinson",
            num_probes=done,
            num_matvecs=self.A.num_matvecs if self.joint else num_own,
            degrees_of_freedom=summary.degrees_of_freedom,
            converged=converged,
            reason=reason,
            seed=self.plan.seed,
            kind=self.plan.kind,
            size=block.size,
            samples=summary.samples,
            deviations=summary.deviations,
            widening=summary.widening,
            probe_ranges=((first, first + done),) if done else (),
            mergeable=done > 0,
        )
