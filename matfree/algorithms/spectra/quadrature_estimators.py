"""Estimators of sums over eigenvalues, by the Lanczos quadrature of every probe."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from matfree.algorithms.eigen.eigsh import BLOCK_SIZE
from matfree.algorithms.krylov.memory_plan import (
    MemoryModel,
    StorageScheme,
    choose_storage,
    vector_bytes,
)
from matfree.algorithms.krylov.recurrence import (
    Recurrence,
    Reorthogonalize,
    require_reorthogonalize,
)
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.running.plan import Plan
from matfree.algorithms.running.state_file import discard
from matfree.algorithms.spectra.deflated_operator import DeflatedOperator
from matfree.algorithms.traces.hutchinson import TraceEstimator
from matfree.arguments import slices
from matfree.arrays import to_host
from matfree.probes import PROBES
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, Tridiagonal

_DENSE_MATRICES = 6  # n x n matrices in memory while the exact answer is computed


class QuadratureEstimator(TraceEstimator):
    """Base class of the estimators of sums over eigenvalues.

    Parameters
    ----------
    A : CountedOperator
    plan : Plan
    num_steps : int
        Lanczos steps per probe.
    reorthogonalize : {"full", "half", "none"}
    """

    method = "Lanczos quadrature"
    saved: tuple[str, ...] = ("columns", "deflated", "recurrence")

    def __init__(
        self, A: CountedOperator, plan: Plan, num_steps: int, reorthogonalize: Reorthogonalize
    ) -> None:
        super().__init__(A, plan)
        self.cost = min(num_steps, self.space.size)
        require_reorthogonalize(reorthogonalize)
        self.recurrence: Recurrence | None = None
        self.columns: HostArray = np.zeros((0, 0))
        self.reorthogonalize: Reorthogonalize = reorthogonalize
        self.deflated = DeflatedOperator(A, seed=plan.seed)
        self._whole = A.operator

    def prepare(self, budget: int) -> int:
        return super().prepare(budget - self.deflated.cost)

    def deflate(self, budget: int) -> None:
        """Find the eigenpairs that are projected out, for at most half of the budget."""
        pairs, checkpoint = self.plan.eigenpairs, self.checkpoint
        if isinstance(pairs, int) and not pairs:
            return
        limit = None
        if self.plan.num_probes is None:
            limit = min(budget // 2, budget - self.cost)
            least = 1 if isinstance(pairs, EigenResult) else min(BLOCK_SIZE, self.space.size)
            if limit < least:
                return
        path = None
        if isinstance(pairs, int):
            pairs = min(pairs, self.space.size - 1)  # probes need a complement
            path = checkpoint.sibling(".eigenpairs")
        self.deflated.find(pairs, path, max_matvecs=limit)
        checkpoint.save()
        if path is not None:
            discard(path, self.space, self.plan.seed)

    def probes(self, start: int, count: int) -> Array:
        return self.deflated.probes(
            count,
            seed=self.plan.seed,
            start=self.plan.first_probe + start,
            kind=self.plan.kind,
            stream=PROBES,
        )

    def fit_into(self, memory: int | None, *, copied: bool) -> None:
        """Choose the block size, and how Lanczos vectors are stored, for a limit on memory."""
        plan, n = self.plan, self.space.size
        most = plan.num_probes or max(1, plan.budget // self.cost)
        wanted = StorageScheme(self.reorthogonalize, min(plan.block_size, most), keep_basis=False)
        exact = plan.num_probes is None and plan.budget >= n
        before = _DENSE_MATRICES * n * vector_bytes(self.space) if exact else 0
        need = MemoryModel(self.space, self.cost, bytes_before=before, checkpointed=copied)
        storage = choose_storage(need, wanted, memory)
        self.memory, self.reorthogonalize = storage.memory, storage.reorthogonalize
        if memory is not None:
            self.plan = replace(plan, block_size=storage.at_once)

    @property
    def unit(self) -> str:
        return f"a probe of {self.method} with num_steps={self.cost}"

    def identity(self, budget: int) -> dict[str, Any]:
        identity = {"num_steps": self.cost, "reorthogonalize": self.reorthogonalize}
        pairs = self.plan.eigenpairs
        if isinstance(pairs, int) and not pairs:  # as in files of version 0.1
            return identity
        return {**identity, "eigenpairs": "given" if isinstance(pairs, EigenResult) else pairs}

    @abstractmethod
    def record(self, T: Tridiagonal, p: int) -> None:
        """Record the quadrature of the p-th probe of a block."""

    @abstractmethod
    def sum_over(self, eigenvalues: HostArray) -> complex:
        """The exact answer, a float or a complex number, from all eigenvalues."""

    def uncertainty(self, eigenvalues: HostArray) -> float:
        """A bound on the error that rounding causes in the exact answer, where it is large."""
        return 0.0

    def advance(self, start: int, count: int) -> None:
        self._record_all(self._factorized(self.probes(start, count)))

    def _record_all(self, T: Tridiagonal) -> None:
        """Record the quadratures of all probes of a block."""
        for p in range(len(T.alphas)):
            self.record(T, p)

    def exact(self) -> Summary:
        """The exact answer from the eigenvalues of the dense matrix, after n matvecs."""
        self.A.operator = self._whole
        E = self.space.unit_vectors(range(self.space.size))
        for part in slices(self.space.size, self.plan.block_size, self.columns.shape[1]):
            Y = self.A(E[:, part])
            fresh = to_host(self.space.gram(E, Y))
            self.A.require_finite(fresh)
            self.columns = np.hstack((self.columns, fresh)) if part.start else fresh
            self.block_done()
        dense = self.columns
        scale = float(np.abs(dense).max())
        if scale > 0:
            self.A.require_hermitian(float(np.abs(dense - dense.conj().T).max()) / scale)
        eigenvalues = np.linalg.eigvalsh((dense + dense.conj().T) / 2)
        total, bias = self.sum_over(eigenvalues), self.uncertainty(eigenvalues)
        return Summary(total, 0.0, abs(total), 0.0, math.inf, bias=bias)

    def _factorized(self, W: Array) -> Tridiagonal:
        """The tridiagonal matrices of a block of probes, saved after every few steps."""
        recurrence = self._recurrence(W, self.cost)
        while not recurrence.finished:
            recurrence.advance()
            self.block_done()
        self.recurrence = None
        return recurrence.result()

    def _recurrence(self, W: Array, num_steps: int) -> Recurrence:
        """The recurrence of a block of probes, at the step at which a checkpoint was written."""
        recurrence = Recurrence(
            self.A, W, num_steps, reorthogonalize=self.reorthogonalize, keep_basis=False
        )
        self.checkpoint.resume_object("recurrence", recurrence)
        self.recurrence = recurrence
        return recurrence
