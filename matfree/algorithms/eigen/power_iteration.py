r"""Power iteration, the textbook method, with the stopping rule the textbooks forget.

v <- A v / ||A v|| turns towards the eigenvector of the eigenvalue largest in magnitude, by
a factor |lambda_2 / lambda_1| a step. The Rayleigh quotient theta = v^H A v can stand still
long before v is an eigenvector (for a spectrum {1, -1} it never is); the residual
||A v - theta v|| cannot lie: some eigenvalue is within it of theta, always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, final

import numpy as np

from matfree import probes
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.run import Run
from matfree.arrays import real_part, to_host
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import Array, HostArray, Seed
from matfree.results import EigenResult, StoppingReason
from matfree.spaces import VectorSpace

_STEPS_PER_POWER_CHECK = 5
"""Steps between two looks from the host: the device is not waited for in between."""


class PowerStep(NamedTuple):
    """What a callback sees after each look."""

    pair: int
    """Which eigenpair, counted from 0."""
    step: int
    """Steps spent on it so far."""
    value: float
    """Its Rayleigh quotient."""
    residual: float
    """||A v - theta v|| relative to the norm of A."""


def power_iteration(
    A: Any,
    k: int = 1,
    *,
    rtol: float = 1e-3,
    max_steps: int = 1000,
    seed: Seed = None,
    progress: bool = False,
    callback: Callable[[PowerStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> EigenResult:
    r"""The k eigenvalues largest in magnitude, by power iteration with deflation.

    v <- A v / ||A v||, theta = v^H A v, until ||A v - theta v|| <= rtol ||A||. Each later
    pair is iterated in the orthogonal complement of the earlier ones; at the end the k
    vectors are rotated to the eigenvectors of their k x k projection of A.

    It converges as |lambda_{k+1} / lambda_k|^steps and not at all where two eigenvalues
    tie in magnitude with opposite signs: then the residual stays, ``converged`` is False
    and a warning says so.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    k : int
        In [1, n].
    rtol : float
        Bound on the residual relative to ||A||_2, the latter estimated by the largest
        ||A v|| met on the way.
    max_steps : int
        The most steps for one pair.
    seed : int, None or numpy.random.Generator
        Of the start vectors (Gaussian).
    progress : bool
        Show a progress bar of the pairs (needs tqdm).
    callback : function, optional
        It is called with a ``PowerStep`` every 5 steps; returning True or raising
        StopIteration ends the iteration for this pair and begins the next.
    checkpoint : path, optional
        A file that holds the state of the run every 5 steps, from which the same call
        resumes; as for :func:`matfree.trace`.

    Returns
    -------
    EigenResult
        Sorted by magnitude; residuals recomputed; ``history`` holds every step of every
        pair as (pair, theta, relative residual).

    Raises
    ------
    ValueError
        k not in [1, n], rtol or max_steps not positive.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        A pair's residual is still above rtol after max_steps.

    Cost
    ----
    One matvec a step, at most k * max_steps; 2 k + 6 vectors in memory, 6 k + 1 where the
    pairs are rotated at the end.

    References
    ----------
    R. von Mises, H. Pollaczek-Geiringer (1929), doi:10.1002/zamm.19290090206.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> result = mf.power_iteration(np.diag([1.0, 2.0, 5.0, -10.0]), k=2, rtol=1e-8, seed=0)
    >>> result.values.round(10)
    array([-10.,   5.])
    >>> bool(result.converged.all())
    True
    """
    A = CountedOperator(A)
    n = A.space.size
    if not 1 <= k <= n:
        raise ValueError(f"k must be in [1, n]: got {k} for an operator of size {n}.")
    if not rtol > 0:
        raise ValueError(f"rtol must be positive: got {rtol}; it is relative to ||A||.")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1: got {max_steps}.")
    run = Run(
        "power iteration", Checkpoint(checkpoint, A, seed), progress=progress, callback=callback
    )
    search = _PowerSearch(A, run, k, rtol, max_steps)
    result = run.complete(k, search.complete, search.interrupted)
    if not result.converged.all():
        _warn_unconverged_pairs(result, rtol, max_steps)
    return result


@final
class _PowerSearch:
    """The vectors found so far, their matvecs, and the norm that residuals are relative to."""

    saved = ("found", "U", "AU", "norm", "history", "step", "v")
    by_row: ClassVar = {"U": 0, "AU": 0, "v": 0}

    def __init__(
        self, A: CountedOperator, run: Run[PowerStep], k: int, rtol: float, max_steps: int
    ) -> None:
        self.A, self.space, self.run = A, A.space, run
        self.k, self.rtol, self.max_steps, self.seed = k, rtol, max_steps, run.checkpoint.seed
        self.found = 0
        self.U = self.space.zeros(k)
        self.AU = self.space.zeros(k)
        self.step = 0  # of the present pair
        self.v = self.space.zeros(1)
        self.norm = 0.0
        self.history: list[tuple[int, float, float]] = []

    def complete(self) -> EigenResult:
        """Find all pairs, one after the other."""
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
        result = self.result(StoppingReason.RESIDUALS)
        if not result.converged.all():
            result = replace(result, reason=StoppingReason.STEPS)
        return result

    def interrupted(self) -> EigenResult | None:
        """The pairs when the user interrupts the run; None before the first."""
        return self.result(StoppingReason.INTERRUPTED) if self.found else None

    def _find_pair(self, pair: int) -> None:
        """Find a pair to half of the tolerance; the other half is for the final rotation."""
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
            elif step == 2 and first is not None:
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
        """Whether the residual is small enough, or the callback stops the iteration."""
        state = self._check(pair, step, entries)
        return state.residual <= self.rtol / 2 or self.run.is_stopped(lambda: state)

    def result(self, reason: StoppingReason) -> EigenResult:
        """Rayleigh-Ritz on what was found; residuals from the products already made."""
        space, k = self.space, self.found
        U, AU = self.U[:, :k], self.AU[:, :k]
        H = to_host(space.gram(U, AU))
        values, Y = np.linalg.eigh((H + H.conj().T) / 2)
        order = np.argsort(-np.abs(values), kind="stable")
        values, Y = values[order], space.asarray(Y[:, order])
        U, AU = U @ Y, AU @ Y
        residuals = to_host(space.norms(AU - U * space.asarray(values)[None, :]))
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
            reason=reason,
            seed=self.seed,
            history=tuple(self.history),
            rows=space.row_range,
        )

    def _project_out_found(self, w: Array) -> Array:
        """w without its components along the vectors already found, projected twice."""
        if self.found:
            U = self.U[:, : self.found]
            for _ in range(2):
                w = w - U @ self.space.xp.astype(self.space.gram(U, w), self.space.dtype)
        return w

    def _check(self, pair: int, step: int, entries: list[Array]) -> PowerStep:
        """Bring theta, residual and ||A v|| of the last steps to the host."""
        numbers: HostArray = to_host(self.space.xp.stack(entries))
        self.A.require_finite(numbers)
        for theta, residual, length in numbers.tolist():
            self.norm = max(self.norm, length)
            relative = residual / self.norm if self.norm > 0 else 0.0
            self.history.append((pair, theta, relative))
        return PowerStep(pair, step, self.history[-1][1], self.history[-1][2])

    def _check_symmetry(self, v1: Array, w1: Array, v2: Array, w2: Array) -> None:
        """v1^H (A v2) and (A v1)^H v2 must be one number; both products are made anyway."""
        xp = self.space.xp
        defect = xp.abs(self.space.dots(v1, w2) - self.space.dots(w1, v2))[0]
        scale = xp.maximum(self.space.norms(w1), self.space.norms(w2))[0]
        gap, size = to_host(xp.stack((defect, scale))).tolist()
        if np.isfinite(gap) and size > 0:
            self.A.require_hermitian(gap / size)


def _rayleigh_residual(space: VectorSpace, v: Array, w: Array, deflated: Array) -> Array:
    """(theta, ||residual||, ||A v||) on the device; the residual within the complement."""
    xp = space.xp
    theta = real_part(xp, space.dots(v, w))
    residual = deflated - v * xp.astype(theta, space.dtype)[None, :]
    return xp.concat((theta, space.norms(residual), space.norms(w)))


def _unit(space: VectorSpace, w: Array, *, fallback: Array) -> Array:
    """w / ||w||; the previous vector where A v = 0, which is then an eigenvector already."""
    xp = space.xp
    length = space.norms(w)
    zero = length == 0
    safe = xp.astype(xp.where(zero, xp.ones_like(length), length), space.dtype)
    return xp.where(zero[None, :], fallback, w / safe[None, :])


def _warn_unconverged_pairs(result: EigenResult, rtol: float, max_steps: int) -> None:
    open_pairs = int(np.sum(~result.converged))
    warn(
        f"{open_pairs} of {len(result.values)} pairs did not reach rtol={rtol:g} within "
        f"{max_steps} steps (worst residual {result.residuals.max():.1e} of ||A||): raise "
        "max_steps, or expect eigenvalues of equal magnitude and opposite sign, which power "
        "iteration cannot tell apart.",
        ConvergenceWarning,
    )
