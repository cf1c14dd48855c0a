"""The run of ``eigsh`` for transformed problems: search, and residuals of the original problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from matfree.algorithms.eigen.arguments import EigenStep, Tolerance
from matfree.algorithms.eigen.transformed_problem import (
    AnyWhich,
    TransformedProblem,
    estimated_norm,
)
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arrays import to_host
from matfree.errors import SolveError
from matfree.protocol import Array, HostArray
from matfree.results import EigenResult, StoppingReason

_MOST_SEARCHES = 4
"""The number of searches, each with a smaller tolerance: the residual of the original problem may
be larger than that of the transformed one by the ratio of their eigenvalues."""


class OriginalPairs(NamedTuple):
    """Eigenpairs of the original problem, with residuals relative to its norm."""

    values: HostArray
    vectors: Array
    residuals: HostArray


def find_transformed(
    A: CountedOperator,
    k: int,
    *,
    which: AnyWhich,
    sigma: float | None,
    OPinv: Any,
    tolerance: Tolerance,
    inverses: dict[str, Any],
    find: Callable[..., EigenResult],
    **options: Any,
) -> EigenResult:
    """Eigenpairs near a point, of smallest magnitude, or of a generalized problem.

    If A - sigma M has no inverse, that of A - (sigma - delta) M is used, where delta is far below
    ||A|| and far above rounding.

    Parameters
    ----------
    inverses : the arguments M and Minv
    find : function
        ``find_eigenpairs``, for the transformed operator.
    A, k, which, sigma, OPinv, tolerance, **options
        As for :func:`matfree.eigsh`.
    """
    norm = estimated_norm(A)
    common = {"which": which, "rtol": tolerance.rtol, "OPinv": OPinv, **inverses}
    problem = TransformedProblem(A, sigma=sigma, **common)
    arguments = {"k": k, "norm": norm, **options}
    try:
        return _search(problem, tolerance, find, **arguments)
    except SolveError:
        if not problem.inverts or OPinv is not None:
            raise
        spent = problem.num_matvecs - A.num_matvecs
    delta = tolerance.eps ** (1 / 3) * (norm or 1.0)
    problem = TransformedProblem(A, sigma=sigma, nudge=delta, spent=spent, **common)
    return _search(problem, tolerance, find, **arguments)


def _search(
    problem: TransformedProblem,
    tolerance: Tolerance,
    find: Callable[..., EigenResult],
    *,
    k: int,
    norm: float,
    max_matvecs: int | None,
    start: Any,
    callback: Callable[[EigenStep], bool | None] | None,
    **options: Any,
) -> EigenResult:
    """Search the transformed problem until the residuals of the original one are small."""
    budget, rtol = max_matvecs or max(1000, 100 * k), tolerance.rtol
    if callback is not None:
        options["callback"] = _in_original_values(problem, callback)
    for _ in range(_MOST_SEARCHES):
        found = find(
            problem.operator,
            k,
            which=problem.which,
            tolerance=Tolerance(rtol, tolerance.eps),
            max_matvecs=budget,  # of all searches: the operator counts them together
            start=start,
            recompute=False,
            **options,
        )
        pairs = _original_pairs(problem, found.vectors, norm)
        finished = np.all(pairs.residuals <= tolerance.rtol) or not found.converged.all()
        if (
            finished
            or problem.operator.num_matvecs + 4 * k + 4 > budget
            or rtol <= 4 * tolerance.eps
        ):
            break
        gain = min(0.1, 0.3 * tolerance.rtol / float(pairs.residuals.max()))
        rtol, start = max(gain * rtol, 4 * tolerance.eps), found
        options["checkpoint"] = None  # which belongs to the first search
    return _result(problem, found, pairs, norm, tolerance)


def _in_original_values(
    problem: TransformedProblem, callback: Callable[[EigenStep], bool | None]
) -> Callable[[EigenStep], bool | None]:
    """A callback that is given the eigenvalues of the original problem."""
    return lambda step: callback(
        EigenStep(problem.num_matvecs, problem.values(step.values), step.residuals)
    )


def _original_pairs(problem: TransformedProblem, U: Array, norm: float) -> OriginalPairs:
    """Rayleigh-Ritz for A and M in the range of U, whose columns are M-orthonormal."""
    A, space = problem.A, problem.A.space
    AU = A(U)
    H = to_host(space.gram(U, AU))
    A.require_finite(H)
    values, Y = np.linalg.eigh((H + H.conj().T) / 2)
    best = problem.order(values)
    values, coordinates = values[best], space.asarray(Y[:, best])
    U, AU = U @ coordinates, AU @ coordinates
    MU = U if problem.M is None else problem.M.matmat(U)
    R = AU - MU * space.asarray(values)[None, :]
    residuals, lengths = to_host(space.norms(R)), to_host(space.norms(U))
    size = norm * lengths
    relative = np.divide(residuals, size, out=residuals.copy(), where=size > 0)
    return OriginalPairs(values, U, relative)


def _result(
    problem: TransformedProblem,
    found: EigenResult,
    pairs: OriginalPairs,
    norm: float,
    tolerance: Tolerance,
) -> EigenResult:
    """The result in terms of the original problem."""
    converged = pairs.residuals <= tolerance.rtol
    reason = found.reason
    if not converged.all() and reason in (StoppingReason.VERIFIED, StoppingReason.RESIDUALS):
        reason = StoppingReason.ROUNDING
    history = tuple(
        (matvecs, float(problem.values(np.asarray(value))), residual)
        for matvecs, value, residual in found.history
    )
    name = "shift-and-invert " if problem.inverts else ""
    return replace(
        found,
        values=pairs.values,
        vectors=pairs.vectors,
        residuals=pairs.residuals,
        converged=converged,
        norm=norm,
        which=problem.given,
        method=f"{name}{found.method}",
        num_matvecs=problem.num_matvecs,
        reason=reason,
        verified=found.verified and bool(converged.all()),
        history=history,
    )
