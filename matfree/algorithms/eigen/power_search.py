"""The run of ``power_iteration``: steps, convergence checks, deflation and the final rotation."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple, final

import numpy as np

from matfree import probes
from matfree.algorithms.eigen.arguments import Tolerance
from matfree.algorithms.krylov.rayleigh_ritz import rayleigh_ritz
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.arrays import real_part, to_host
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, StoppingReason
from matfree.spaces import VectorSpace

_STEPS_PER_POWER_CHECK = 5
"""The number of steps between two convergence checks. Only the checks synchronize with the
device."""


class PowerStep(NamedTuple):
    """What a callback is given after each convergence check."""

    pair: int
    """The index of the eigenpair, from 0."""
    step: int
    """The number of steps for this eigenpair so far."""
    value: float
    """Its Rayleigh quotient."""
    residual: float
    """||A v - theta v|| relative to the norm of A."""

    def times(self, factor: float) -> PowerStep:
        """The same for the operator multiplied by a factor."""
        return self._replace(value=self.value * factor)


@final
class PowerSearch:
    """The eigenpairs found so far, and the iteration for the next one.

    Parameters
    ----------
    A : CountedOperator
    run : Run
    k : int
    tolerance : Tolerance
    max_steps : int
        The maximum number of steps per eigenpair.
    """

    saved = ("found", "U", "AU", "norm", "history", "step", "v")
    by_row: ClassVar = {"U": 0, "AU": 0, "v": 0}

    def __init__(
        self, A: CountedOperator, run: Run[PowerStep], k: int, tolerance: Tolerance, max_steps: int
    ) -> None:
        self.A, self.space, self.run = A, A.space, run
        self.k, self.max_steps, self.seed = k, max_steps, run.checkpoint.seed
        self.tolerance, self.rtol = tolerance, tolerance.rtol
        self.found = 0
        self.U = self.space.zeros(k)
        self.AU = self.space.zeros(k)
        self.step = 0  # for the eigenpair that is being iterated
        self.v = self.space.zeros(1)
        self.norm = 0.0
        self.history: list[tuple[int, float, float]] = []

    def complete(self) -> EigenResult:
        """Find all eigenpairs, one after the other, and return them."""
        problem = {
            "estimator": "power_iteration",
            "seed": self.seed,
            "k": self.k,
            "rtol": self.rtol,
            "max_steps": self.max_steps,
        }
        self.run.checkpoint.resume(problem, self)
        for pair in range(self.found, self.k):
            self._find_pair(pair)
            self.run.save()
            self.run.bar.show(self.found)
        result = self.result(StoppingReason.STEPS)
        if result.converged.all():
            result = replace(result, reason=StoppingReason.RESIDUALS)
        return result

    def interrupted(self) -> EigenResult | None:
        """The eigenpairs when the user interrupts the run; None if there are none yet."""
        return self.result(StoppingReason.INTERRUPTED) if self.found else None

    def _find_pair(self, pair: int) -> None:
        """Iterate one eigenpair to half of the tolerance, or to eps.

        The final rotation may increase residuals, which is what the other half is for. Residuals
        below eps are rounding errors.
        """
        space = self.space
        if self.step == 0:
            v = space.probes(1, seed=self.seed, start=pair, kind="gaussian", stream=probes.START)
            self.v = _unit(space, self._project_out_found(v), fallback=v)
        entries: list[Array] = []
        first: tuple[Array, Array] | None = None
        for step in range(self.step + 1, self.max_steps + 1):
            v, w = self.v, self.A(self.v)
            entries.append(_rayleigh_residual(space, v, w, self._project_out_found(w)))
            if step == 1 and pair == 0:
                first = v, w
            elif step == 2 and first is not None:  # once is enough: A does not change
                self._check_symmetry(*first, v, w)
            checks = step % _STEPS_PER_POWER_CHECK == 0 or step in (2, self.max_steps)
            if checks and self._is_done(pair, step, entries):
                break
            if step < self.max_steps:
                self.v = _unit(space, self._project_out_found(w), fallback=v)
            if checks:
                self.step, entries = step, []
                self.run.save()
        self.U[:, pair], self.AU[:, pair] = v[:, 0], w[:, 0]
        self.found, self.step = pair + 1, 0

    def _is_done(self, pair: int, step: int, entries: list[Array]) -> bool:
        """Whether the residual is small enough or the callback ends the iteration."""
        state = self._check(pair, step, entries)
        return state.residual <= max(self.rtol / 2, self.tolerance.eps) or self.run.is_stopped(
            lambda: state
        )

    def result(self, reason: StoppingReason) -> EigenResult:
        """Rayleigh-Ritz on the vectors found, with residuals from the matvecs of the iteration."""
        k = self.found
        values, residuals, U = rayleigh_ritz(self.A, self.U[:, :k], self.AU[:, :k], "LM")
        norm = max(self.norm, float(np.abs(values).max()))
        relative = residuals / norm if norm > 0 else residuals
        return EigenResult(
            values=values,
            vectors=U,
            residuals=relative,
            converged=relative <= self.rtol,
            norm=norm,
            which="LM",
            method="power iteration",
            num_matvecs=self.A.num_matvecs,
            num_steps=self.A.num_matvecs,
            reason=self.tolerance.reason(reason, relative),
            seed=self.seed,
            history=tuple(self.history),
            rows=self.space.row_range,
        )

    def _project_out_found(self, w: Array) -> Array:
        """Project the vectors found out of w, twice because once leaves rounding errors."""
        if self.found:
            U = self.U[:, : self.found]
            for _ in range(2):
                w = w - U @ self.space.xp.astype(self.space.gram(U, w), self.space.dtype)
        return w

    def _check(self, pair: int, step: int, entries: list[Array]) -> PowerStep:
        """Copy theta, residual and ||A v|| of the last steps to the host, and record them."""
        numbers: HostArray = to_host(self.space.xp.stack(entries))
        self.A.require_finite(numbers)
        for theta, residual, length in numbers.tolist():
            self.norm = max(self.norm, length)
            relative = residual / self.norm if self.norm > 0 else 0.0
            self.history.append((pair, theta, relative))
        return PowerStep(pair, step, self.history[-1][1], self.history[-1][2])

    def _check_symmetry(self, v1: Array, w1: Array, v2: Array, w2: Array) -> None:
        """Compare v1^H (A v2) with (A v1)^H v2, for two vectors whose matvecs are known."""
        xp = self.space.xp
        defect = xp.abs(self.space.dots(v1, w2) - self.space.dots(w1, v2))[0]
        scale = xp.maximum(self.space.norms(w1), self.space.norms(w2))[0]
        gap, size = to_host(xp.stack((defect, scale))).tolist()
        if np.isfinite(gap) and size > 0:
            self.A.require_hermitian(gap / size)


def _rayleigh_residual(space: VectorSpace, v: Array, w: Array, deflated: Array) -> Array:
    """theta, the residual norm in the complement, and ||A v||, (3,) on the device."""
    xp = space.xp
    theta = real_part(xp, space.dots(v, w))
    residual = deflated - v * xp.astype(theta, space.dtype)[None, :]
    return xp.concat((theta, space.norms(residual), space.norms(w)))


def _unit(space: VectorSpace, w: Array, *, fallback: Array) -> Array:
    """w / ||w||, or the previous vector if w = A v = 0, because v is an eigenvector then.

    The previous vector also replaces NaN and infinity, which the next check refuses.
    """
    xp = space.xp
    length = space.norms(w)
    usable = xp.isfinite(length) & (length > 0)
    safe = xp.astype(xp.where(usable, length, xp.ones_like(length)), space.dtype)
    return xp.where(usable[None, :], w, fallback) / safe[None, :]
