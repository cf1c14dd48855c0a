r"""The trace of a function with a Krylov space in which it is computed without sampling.

Let Q be an orthonormal basis of the Krylov space of a few random vectors. Then

.. math:: \operatorname{tr} f(A) = \operatorname{tr} Q^H f(A) Q + c (n - k)
    + E[y^H (f(A) - c) y], \quad y = (I - Q Q^H) w,

for random w with E[w w^H] = I and any number c. The first term is computed by further steps of the
block recurrence, and only the last one is sampled. Its variance is that of f - c outside of the
range of Q, which is small if few eigenvalues dominate f.

References
----------
T. Chen, E. Hallman (2023), Krylov-aware stochastic trace estimation, doi:10.1137/22M1494257. D.
Persson, T. Chen, C. Musco (2025), Randomized block-Krylov subspace methods for low-rank
approximation of matrix functions, arXiv:2502.01888.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, TypeAlias, final

import numpy as np

from matfree import probes
from matfree.algorithms.eigen.orthogonal_complement import project_onto_complement
from matfree.algorithms.krylov.thick_restart import KrylovDecomposition
from matfree.algorithms.running.estimator import Summary
from matfree.algorithms.spectra.gauss_quadrature import gauss_rule, recurrence_coefficients
from matfree.algorithms.spectra.quadrature_trace import QuadratureTrace
from matfree.arrays import is_complex
from matfree.protocol import Array, HostArray
from matfree.quadratures.bias import require_within
from matfree.results import Tridiagonal

TraceFunctionMethod: TypeAlias = Literal["slq", "krylov", "auto"]

_WIDTH = 2
"""The number of random vectors of the Krylov space: one more finds second copies of eigenvalues."""

_SHARE = 0.5
"""The part of the budget for the Krylov space."""

_PILOT_SHARE = 0.1
"""The part after which "auto" decides. If it declines the space, the standard error is
1 / sqrt(1 - 0.1) = 1.05 times that of all the budget."""

_SPACE_BYTES = 1 << 30  # memory for the space if no budget is given

_LEAST_GAIN = 0.97
"""The predicted ratio of standard errors up to which "auto" uses the space."""


class KrylovTrace(QuadratureTrace):
    """The trace with and without the Krylov space; arguments as for ``QuadratureTrace``."""

    saved: tuple[str, ...] = (
        *QuadratureTrace.saved,
        "Q",
        "exact_part",
        "exact_bias",
        "center",
        "is_built",
        "spent",
    )
    by_row: ClassVar = {"Q": 0}
    choice: Literal["krylov", "auto"] = "krylov"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.plan.eigenpairs != 0:
            raise ValueError(
                f'give eigenpairs or method="{self.choice}", not both: the Krylov space contains '
                "the largest eigenvectors."
            )
        self.mergeable = False
        self.Q: Array = self.space.zeros(0)
        self.exact_part, self.exact_bias, self.center = 0.0, 0.0, 0.0
        self.is_built, self.spent = False, 0

    def identity(self, budget: int) -> dict[str, Any]:
        return {**super().identity(budget), "choice": self.choice, "budget": budget}

    def prepare(self, budget: int) -> int:
        before = self.A.num_matvecs
        if not self.is_built:
            # With a fixed number of probes, the space takes as many matvecs as they do.
            fixed = self.plan.num_probes
            self._build(budget if fixed is None else 2 * fixed * self.cost)
            self.spent += self.A.num_matvecs - before
            self.block_done()
        if self.Q.shape[1]:
            self.method = "Lanczos quadrature outside a Krylov space"
        return super().prepare(budget - self.spent)

    def _build(self, budget: int) -> None:
        """Build the Krylov space, unless the budget is too small or "auto" declines it."""
        self.is_built = True
        width = min(_WIDTH, self.space.size)
        most = min(int(_SHARE * budget), self._largest_size()) // width
        pilot = min(int(_PILOT_SHARE * budget) // width, most)
        small = budget - width * most < 3 * self.cost or pilot < 4
        if small or width * most >= self.space.size:
            return
        block = self.space.probes(width, seed=self.plan.seed, kind="gaussian", stream=probes.START)
        krylov = KrylovDecomposition(self.A, block, width * most, seed=self.plan.seed)
        if self.choice == "auto":
            size = self._expand(krylov, pilot)
            if self._gain(krylov.H, size, width, budget) > _LEAST_GAIN:
                self.exact_part, self.exact_bias, self.center = 0.0, 0.0, 0.0
                return
        size = self._expand(krylov, most)
        self.Q = self.space.xp.asarray(krylov.V[:, :size], copy=True)

    def _largest_size(self) -> int:
        """The number of vectors that the memory permits, the same on every process."""
        room = _SPACE_BYTES
        if self.memory:
            room = (self.memory["budget"] - self.memory["predicted"]) // 2  # Q is copied
        number = self.space.xp.finfo(self.space.dtype).bits // 8
        number *= 2 if is_complex(self.space.xp, self.space.dtype) else 1
        most = max(0, room) // (number * self.space.size)
        return min(self.space.all_gather_object(lambda: int(most)))

    def _expand(self, krylov: KrylovDecomposition, steps: int) -> int:
        """Make these steps, and return how many vectors have an accurate part of the trace."""
        width = krylov.Q.shape[1]
        while krylov.num_steps < steps and not krylov.exhausted:
            krylov.expand()
        size = width * max(1, krylov.num_steps - min(self.cost, 2 * krylov.num_steps // 3))
        self._compute_inside(krylov.H, size, width)
        return int(size)

    def _compute_inside(self, H: HostArray, size: int, width: int) -> None:
        """The part of the trace without sampling, for the first ``size`` vectors."""
        nodes, U = np.linalg.eigh(H)
        require_within(nodes, self.spectrum, self.rounding * float(np.abs(nodes).max()))
        weights = np.mean(np.abs(U[:width]) ** 2, axis=0)
        self.center = _weighted_median(np.real(self.evaluate(nodes)), weights)
        parts = [self._trace_inside(H, size, width * late) for late in range(3)]
        self.exact_part = parts[0] + self.center * (self.space.size - size)
        self.exact_bias = 2 * float(max(abs(parts[0] - part) for part in parts[1:]))

    def _gain(self, H: HostArray, size: int, width: int, budget: int) -> float:
        """The predicted ratio of the standard errors with and without the space.

        The sum of (f - c)^2 over all eigenvalues is estimated from the start vectors and from the
        Ritz values, and that over those inside is known.
        """
        nodes, U = np.linalg.eigh(H)
        squares = np.abs(self.evaluate(nodes) - self.center) ** 2
        sampled = self.space.size * float(np.mean(np.abs(U[:width]) ** 2 @ squares))
        everything = max(sampled, float(squares.sum()))  # start vectors may miss the largest
        inside = float(np.sum(np.abs(U[:size]) ** 2 @ squares))
        left = max(everything - inside, 0.0)
        if not everything > 0:
            return 1.0
        return math.sqrt(left / everything * budget / (budget - H.shape[0]))

    def _trace_inside(self, H: HostArray, size: int, omitted: int) -> Any:
        """tr Q^H f(A) Q from all but the last ``omitted`` vectors."""
        kept = H.shape[0] - omitted
        nodes, U = np.linalg.eigh(H[:kept, :kept])
        return (np.abs(U[:size]) ** 2 @ self.evaluate(nodes)).sum().item()

    def probes(self, start: int, count: int) -> Array:
        W = super().probes(start, count)
        for _ in range(2 if self.Q.shape[1] else 0):
            W = project_onto_complement(self.space, self.Q, W)
        return W

    def record(self, T: Tridiagonal, p: int) -> None:
        if not self.Q.shape[1]:
            super().record(T, p)
            return
        rule, squared = gauss_rule(T, p, self.cost, self.rounding), T.start_norms[p] ** 2
        require_within(rule.nodes, self.spectrum, self.rounding * float(np.abs(rule.nodes).max()))
        values = self.evaluate(rule.nodes) - self.center
        self.coefficients.append(recurrence_coefficients(T, p))
        self.squares.append(squared)
        sample = self.exact_part + squared * (rule.weights @ values)
        parts = (np.real(values), np.imag(values))
        lengths = [
            math.sqrt(2 * squared) * np.linalg.norm(np.sqrt(rule.weights) * x) for x in parts
        ]
        deviation = complex(*lengths) if np.iscomplexobj(values) else lengths[0]
        self.samples.add(np.asarray([sample]), np.asarray([deviation]))

    def summary(self) -> Summary:
        found = super().summary()
        return found._replace(bias=found.bias + self.exact_bias)


def _weighted_median(values: HostArray, weights: HostArray) -> float:
    """The number that halves the weights."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])


@final
class AutomaticKrylovTrace(KrylovTrace):
    """The same with a decision after the Krylov space is known."""

    choice: Literal["krylov", "auto"] = "auto"


def estimator_of(method: str) -> type[QuadratureTrace]:
    """The estimator for the ``method`` of a trace.

    Raises
    ------
    ValueError
        There is no such method.
    """
    known = {"slq": QuadratureTrace, "krylov": KrylovTrace, "auto": AutomaticKrylovTrace}
    if method not in known:
        raise ValueError(f'method must be "slq", "krylov" or "auto": got {method!r}.')
    return known[method]
