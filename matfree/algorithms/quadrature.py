r"""Estimators behind the traces of functions: quadrature per probe, and squared norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, final

import numpy as np
import scipy.linalg

from matfree.algorithms.estimator import Summary
from matfree.algorithms.hutchinson import Samples, TraceEstimator
from matfree.algorithms.plan import Plan, slices
from matfree.algorithms.products import HostArray, Products
from matfree.algorithms.recurrence import Recurrence, Reorthogonalize
from matfree.arrays import epsilon, to_host
from matfree.protocol import Array
from matfree.results import Tridiagonal

_POINTS = np.array([-1.5, -0.1, 0.3, 1.0, 7.0])
"""Where two functions are compared, to tell whether a checkpoint belongs to this one."""

Function: TypeAlias = Callable[[HostArray], HostArray]
FunctionName: TypeAlias = Literal["log", "inverse", "sqrt", "exp"]


@final
class QuadratureTrace(TraceEstimator):
    """||w||^2 sum_j tau_j f(theta_j) per probe."""

    method = "Lanczos quadrature"
    first_look = 10
    saved = ("samples", "changes", "columns", "recurrence")

    def __init__(
        self,
        product: Products,
        plan: Plan,
        f: Function | FunctionName,
        num_steps: int,
        reorthogonalize: Reorthogonalize,
    ) -> None:
        super().__init__(product, plan)
        self.cost = min(num_steps, self.space.size)
        self.evaluate = _Checked(f, epsilon(self.space.xp, self.space.dtype))
        self.samples = Samples()
        self.changes: list[float] = []
        self.recurrence: Recurrence | None = None
        self.columns: HostArray = np.zeros((0, 0))
        self.reorthogonalize: Reorthogonalize = reorthogonalize

    def identity(self, budget: int) -> dict[str, Any]:
        return {
            "num_steps": self.cost,
            "reorthogonalize": self.reorthogonalize,
            "f at five points": self.evaluate.values_at(_POINTS),
        }

    def advance(self, start: int, count: int) -> None:
        T = self._factorized(self.probes(start, count))
        fresh = []
        for p in range(count):
            whole = self._quadrature(T, p, len(T.alphas[p]))
            part = self._quadrature(T, p, math.ceil(len(T.alphas[p]) / 2))
            ended = T.residual_norms[p] == 0 or len(T.alphas[p]) < self.cost
            self.changes.append(0.0 if ended else whole - part)
            fresh.append(whole)
        self.samples.add(np.asarray(fresh))

    def summary(self) -> Summary:
        bias = abs(float(np.mean(self.changes)))
        return self.samples.summary()._replace(bias=bias)

    def exact(self) -> Summary:
        """n products give the matrix, and its eigenvalues the answer."""
        E = self.space.unit_vectors(range(self.space.size))
        for part in slices(self.space.size, self.plan.block_size, self.columns.shape[1]):
            Y = self.product(E[:, part])
            fresh = to_host(self.space.gram(E, Y))
            self.product.require_finite(fresh)
            self.columns = np.hstack((self.columns, fresh)) if part.start else fresh
            self.block_done()
        dense = self.columns
        scale = float(np.abs(dense).max())
        if scale > 0:
            self.product.require_hermitian(float(np.abs(dense - dense.conj().T).max()) / scale)
        total = float(np.sum(self.evaluate(np.linalg.eigvalsh((dense + dense.conj().T) / 2))))
        return Summary(total, 0.0, abs(total), 0.0, math.inf)

    def _factorized(self, W: Array) -> Tridiagonal:
        """The recurrences of a block of probes, kept in the checkpoint from look to look."""
        recurrence = Recurrence(
            self.product, W, self.cost, reorthogonalize=self.reorthogonalize, keep_basis=False
        )
        if self.checkpoint is not None:
            self.checkpoint.take_up("recurrence", recurrence)
        self.recurrence = recurrence
        while not recurrence.finished:
            recurrence.advance()
            self.block_done()
        self.recurrence = None
        return recurrence.result()

    def _quadrature(self, T: Tridiagonal, p: int, steps: int) -> float:
        alpha, beta = T.alphas[p][:steps], T.betas[p][: steps - 1]
        nodes, vectors = scipy.linalg.eigh_tridiagonal(alpha, beta)
        return T.start_norms[p] ** 2 * float(vectors[0, :] ** 2 @ self.evaluate(nodes))


@final
class SquaredNorm(TraceEstimator):
    """||A w||^2 per probe; its mean is ||A||_F^2."""

    method = "squared Frobenius norm"

    def __init__(self, product: Products, plan: Plan) -> None:
        super().__init__(product, plan)
        self.samples = Samples()

    def advance(self, start: int, count: int) -> None:
        Y = self.product(self.probes(start, count))
        lengths = to_host(self.product.operator.space.norms(Y))
        self.product.require_finite(lengths)
        self.samples.add(lengths**2)

    def summary(self) -> Summary:
        return self.samples.summary()


@final
class _Checked:
    """A function of Ritz values that refuses what is outside its domain."""

    def __init__(self, f: Function | FunctionName, eps: float) -> None:
        if not callable(f) and f not in _NAMED:
            known = ", ".join(map(repr, _NAMED))
            raise ValueError(f"f must be a function or one of {known}: got {f!r}.")
        self.name = "f" if callable(f) else f
        self.f = f if callable(f) else _NAMED[f]
        self.eps = eps

    def values_at(self, points: HostArray) -> tuple[float, ...]:
        """f there, NaN where it is not defined: what tells two functions apart."""
        with np.errstate(all="ignore"):
            return tuple(np.asarray(self.f(points), dtype=np.float64).tolist())

    def __call__(self, nodes: HostArray) -> HostArray:
        least, noise = float(nodes.min()), self.eps * float(np.abs(nodes).max())
        if self.name in ("log", "inverse") and least <= 0:
            raise ValueError(self._refusal(least, "positive definite"))
        if self.name == "sqrt":
            if least < -32 * noise:
                raise ValueError(self._refusal(least, "positive semidefinite"))
            nodes = np.maximum(nodes, 0.0)
        with np.errstate(all="ignore"):
            values = np.asarray(self.f(nodes), dtype=np.float64)
        if not np.all(np.isfinite(values)):
            bad = float(nodes[~np.isfinite(values)][0])
            raise ValueError(
                f"f is not finite at the Ritz value {bad:.6g}; shift the operator, or choose an "
                "f that is defined on its spectrum."
            )
        return values

    def _refusal(self, least: float, need: str) -> str:
        return (
            f"{self.name} needs a {need} operator: its least Ritz value is {least:.6g}; shift it "
            f"(A.shift({max(-2 * least, 1e-8):.2g})), or pass your own function."
        )


_NAMED: dict[str, Function] = {
    "log": np.log,
    "inverse": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "exp": np.exp,
}
