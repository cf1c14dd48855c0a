"""Estimators of sums over eigenvalues, by the Lanczos quadrature of every probe."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, final

import numpy as np
import scipy.linalg

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
from matfree.algorithms.spectra.gauss_quadrature import gauss_rule
from matfree.algorithms.spectra.spectral_functions import Function, FunctionName, SpectralFunction
from matfree.algorithms.traces.hutchinson import Samples, TraceEstimator
from matfree.arguments import slices
from matfree.arrays import epsilon, rounding, to_host
from matfree.protocol import Array, HostArray
from matfree.results import Tridiagonal

_POINTS = np.array([-1.5, -0.1, 0.3, 1.0, 7.0])
"""Points at which the function of a checkpoint is compared with that of the run."""

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
    first_check = 10  # fewer than for traces, because each probe costs num_steps matvecs
    saved: tuple[str, ...] = ("columns", "recurrence")

    def __init__(
        self, A: CountedOperator, plan: Plan, num_steps: int, reorthogonalize: Reorthogonalize
    ) -> None:
        super().__init__(A, plan)
        self.cost = min(num_steps, self.space.size)
        require_reorthogonalize(reorthogonalize)
        self.recurrence: Recurrence | None = None
        self.columns: HostArray = np.zeros((0, 0))
        self.reorthogonalize: Reorthogonalize = reorthogonalize

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
        return {"num_steps": self.cost, "reorthogonalize": self.reorthogonalize}

    @abstractmethod
    def record(self, T: Tridiagonal, p: int) -> None:
        """Record the quadrature of the p-th probe of a block."""

    @abstractmethod
    def sum_over(self, eigenvalues: HostArray) -> complex:
        """The exact answer, a float or a complex number, from all eigenvalues."""

    def advance(self, start: int, count: int) -> None:
        T = self._factorized(self.probes(start, count))
        for p in range(count):
            self.record(T, p)

    def exact(self) -> Summary:
        """The exact answer from the eigenvalues of the dense matrix, after n matvecs."""
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
        total = self.sum_over(np.linalg.eigvalsh((dense + dense.conj().T) / 2))
        return Summary(total, 0.0, abs(total), 0.0, math.inf)

    def _factorized(self, W: Array) -> Tridiagonal:
        """The tridiagonal matrices of a block of probes, saved after every few steps."""
        recurrence = Recurrence(
            self.A, W, self.cost, reorthogonalize=self.reorthogonalize, keep_basis=False
        )
        self.checkpoint.resume_object("recurrence", recurrence)
        self.recurrence = recurrence
        while not recurrence.finished:
            recurrence.advance()
            self.block_done()
        self.recurrence = None
        return recurrence.result()


@final
class QuadratureTrace(QuadratureEstimator):
    """The mean of ||w||^2 sum_j tau_j f(theta_j) over probes, raised to ``exponent``."""

    saved = ("samples", "changes", "moved", "columns", "recurrence")

    def __init__(
        self,
        A: CountedOperator,
        plan: Plan,
        num_steps: int,
        reorthogonalize: Reorthogonalize,
        *,
        f: Function | FunctionName,
        exponent: float = 1.0,
        method: str = QuadratureEstimator.method,
    ) -> None:
        super().__init__(A, plan, num_steps, reorthogonalize)
        self.evaluate = SpectralFunction(f, epsilon(self.space.xp, self.space.dtype))
        self.rounding = rounding(self.space.xp, self.space.dtype)
        self.exponent, self.method = exponent, method
        self.mergeable = exponent == 1  # the mean of two roots is not the root of the mean
        self.samples = Samples()
        self.changes: list[float | HostArray] = []
        """The change of every sample during the second half of its steps: its bias."""
        self.moved: list[float] = []
        """The change of every sample when its nodes move by the error of a 16-bit basis."""

    def identity(self, budget: int) -> dict[str, Any]:
        values = self.evaluate.values_at(_POINTS)
        return {**super().identity(budget), "f at five points": values}

    def record(self, T: Tridiagonal, p: int) -> None:
        rule, squared = gauss_rule(T, p, self.cost, self.rounding), T.start_norms[p] ** 2
        half, error = math.ceil(len(rule.nodes) / 2), T.node_error(p)
        fewer, vectors = scipy.linalg.eigh_tridiagonal(T.alphas[p][:half], T.betas[p][: half - 1])
        full = squared * (rule.weights @ self.evaluate(rule.nodes))
        partial = squared * (vectors[0, :] ** 2 @ self.evaluate(fewer))
        exact = not (rule.residuals > error).any()
        change = np.asarray(0.0 if exact else full - partial)
        # Checkpoints store complex numbers in arrays only.
        self.changes.append(change if np.iscomplexobj(change) else float(change))
        if T.node_errors:  # move nodes inwards: f may be undefined outside the spectrum
            middle = (rule.nodes[0] + rule.nodes[-1]) / 2
            inwards = rule.nodes + error * np.sign(middle - rule.nodes)
            moved = squared * (rule.weights @ self.evaluate(inwards)) - full
            self.moved.append(float(abs(moved)))
        self.samples.add(np.asarray([full]))

    def sum_over(self, eigenvalues: HostArray) -> complex:
        total: complex = np.sum(self.evaluate(eigenvalues, complete=True)).item()
        return total

    def summary(self) -> Summary:
        bias = float(abs(np.mean(np.asarray(self.changes)))) + float(np.mean(self.moved or [0.0]))
        return power_of(self.samples.summary()._replace(bias=bias), self.exponent)

    def exact(self) -> Summary:
        return power_of(super().exact(), self.exponent)


def power_of(summary: Summary, exponent: float) -> Summary:
    """A power of a nonnegative estimate, with its errors propagated to first order.

    The power of 0 has no derivative; its errors are then those powers of the errors.
    """
    if exponent == 1:
        return summary
    value = max(float(summary.value), 0.0)
    root = value**exponent
    stderr, bias = (
        exponent * root / value * error if value > 0 else error**exponent
        for error in (summary.stderr, summary.bias)
    )
    return Summary(root, stderr, root, stderr, summary.degrees_of_freedom, bias=bias)
