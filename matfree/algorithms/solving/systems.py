"""The work of ``solve`` and ``inverse``: scaling, the run, and what is to be done if it fails."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from matfree.algorithms.running.checkpoint import Checkpoint
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.magnitude import MagnitudeError, Rescaled
from matfree.algorithms.running.plan import require_budget
from matfree.algorithms.running.run import Run
from matfree.algorithms.solving.conjugate_gradients import ConjugateGradients
from matfree.algorithms.solving.lsmr import Lsmr
from matfree.algorithms.solving.minres import Minres
from matfree.algorithms.solving.preconditioners import NystromPreconditioner, given_preconditioner
from matfree.algorithms.solving.right_hand_sides import RightHandSides, as_block, largest_entries
from matfree.algorithms.solving.solve_options import SolveOptions
from matfree.algorithms.solving.solve_run import MakeSolver, SolveRun
from matfree.algorithms.solving.solver import Precondition, Solver
from matfree.arrays import epsilon, to_host
from matfree.errors import Interrupted, warn
from matfree.operators import Operator
from matfree.protocol import Array, HostArray
from matfree.results import Solution, StoppingReason
from matfree.spaces import VectorSpace

_LSMR_REMEDY = 'pass method="lsmr", which needs A.rmatvec but no symmetry'


def find_solution(
    operator: Operator, B: Any, options: SolveOptions, *, start: Any = None
) -> Solution:
    """The work of :func:`matfree.solve`, without a warning if it does not converge.

    Parameters
    ----------
    operator : Operator
    B : (rows,) or (rows, k)
    options : SolveOptions
    start : (rows,) or (rows, k), or Solution, optional
    """
    options.require_valid(operator)
    given = start.values if isinstance(start, Solution) else start
    try:
        return _solved(operator, B, options, given, 1.0)
    except MagnitudeError as found:
        unit, lost = 2.0**found.exponent, 0
        if options.wants_nystrom and found.block is not None:
            # It may be a block of A, from the sketch, or one of A + shift I.
            lost, found.block = found.block[0].shape[1], None
            if options.max_matvecs is not None:
                options = replace(options, max_matvecs=max(1, options.max_matvecs - lost))
        # The failed run saw A + shift I, of which the matvecs are used again.
        rescaled = Rescaled(_with_shift(operator, options.real_shift), found)
    scaled = options.divided(unit)
    try:
        solution = _solved(rescaled, B, scaled, given, unit, is_shifted=True)
    except Interrupted as stop:
        raise Interrupted(replace(stop.result, shift=options.shift)) from stop
    cost = solution.num_matvecs + rescaled.num_lost + lost
    return replace(solution, shift=options.shift, num_matvecs=cost)


def _solved(
    operator: Operator,
    B: Any,
    options: SolveOptions,
    start: Any,
    unit: float,
    *,
    is_shifted: bool = False,
) -> Solution:
    """The solution of the given system, divided by ``unit``, with an operator in range."""
    system = operator if is_shifted else _with_shift(operator, options.real_shift)
    A = CountedOperator(system, square=False, remedy=_LSMR_REMEDY)
    adjoint = CountedOperator(system.H, square=False)
    sides = RightHandSides.of(system.space, B)
    k = len(sides.norms)
    targets = np.maximum(options.rtol * sides.norms, options.atol / sides.scales)
    budget, method = options.budget(operator, k), options.method_for(operator)
    each = 5 if method == "lsmr" else 2
    require_budget(budget, each * k, f"one step for {k} right-hand sides and their residuals")
    run = Run(
        "solve",
        Checkpoint(options.checkpoint, A, options.seed),
        progress=options.progress,
        callback=options.callback,
    )
    nystrom = None
    if options.wants_nystrom:
        unshifted = _with_shift(system, -options.real_shift) if is_shifted else operator
        nystrom = NystromPreconditioner.make(A, unshifted, options, k, run.checkpoint.seed)
    solving = SolveRun(
        A,
        adjoint,
        run,
        sides,
        targets,
        start=_start(system.domain, start, sides, unit),
        method=method,
        make=_maker(A, adjoint, options, nystrom),
        nystrom=nystrom,
        width=options.width(k),
        budget=budget,
    )
    solving.resume(_problem(options, run.checkpoint.seed, sides, start is not None))

    def so_far() -> Solution:
        solving.interrupt()
        return _solution(solving, options, unit)

    run.complete(k, solving.complete, so_far)
    return _solution(solving, options, unit)


def _with_shift(operator: Operator, shift: complex) -> Operator:
    return operator.shift(shift) if shift else operator


def _start(space: VectorSpace, start: Any, sides: RightHandSides, unit: float) -> Array | None:
    """The start vectors for the scaled right-hand sides and the scaled operator."""
    if start is None:
        return None
    X, _ = as_block(space, start, "start")
    if X.shape[1] != len(sides.norms):
        raise ValueError(
            f"start must have as many columns as B: got {X.shape[1]} and {len(sides.norms)}."
        )
    return X * space.asarray(unit / sides.scales)[None, :]


def _problem(
    options: SolveOptions, seed: int, sides: RightHandSides, has_start: bool
) -> dict[str, Any]:
    """What a checkpoint has in common with the run that resumes it."""
    return {
        "estimator": "solve",
        "seed": seed,
        "method": options.method,
        "rtol": float(options.rtol),
        "atol": float(options.atol),
        "has_start": has_start,
        "preconditioned": options.preconditioner is not None,
        "rank": options.rank,
        "norms": tuple((sides.norms * sides.scales).tolist()),
    }


def _maker(
    A: CountedOperator,
    adjoint: CountedOperator,
    options: SolveOptions,
    nystrom: NystromPreconditioner | None,
) -> MakeSolver:
    """The function that makes a solver of a named method."""
    precondition: Precondition | None = nystrom
    if nystrom is None and options.preconditioner is not None:
        precondition = given_preconditioner(A, options.preconditioner).matmat

    def make(method: str, R: Array, norms: HostArray, targets: HostArray) -> Solver:
        rtol = max(options.rtol, epsilon(A.space.xp, A.space.dtype))
        if method == "lsmr":
            return Lsmr(A, R, norms, targets, adjoint=adjoint, rtol=rtol)
        if method == "minres":
            return Minres(A, R, norms, targets, precondition, rtol=rtol)
        return ConjugateGradients(A, R, norms, targets, precondition)

    return make


def _solution(run: SolveRun, options: SolveOptions, unit: float) -> Solution:
    """The solution of the given system from that of the scaled one."""
    sides, space = run.B, run.A.space
    rectangular = run.A.operator.shape[0] != run.A.operator.shape[1]
    exponents = np.log2(sides.scales) - np.log2(unit)
    values = run.X
    with np.errstate(over="ignore"):  # which the next lines report
        for half in (np.floor(exponents / 2), np.ceil(exponents / 2)):
            values = values * space.asarray(2.0**half)[None, :]
    if not np.all(np.isfinite(largest_entries(space, values))):
        raise OverflowError(
            f"the solution exceeds the range of {space.dtype}; divide B by a large number first, "
            "or multiply the operator by it."
        )
    bound = _error_bound(run, options)
    return Solution(
        values=values[:, 0] if sides.is_vector else values,
        residuals=run.relative,
        converged=run.converged | (run.least_squares & rectangular),
        method=", then ".join(run.names) or "no iteration",
        num_matvecs=run.num_matvecs,
        num_steps=run.num_steps,
        reason=run.final_reason(),
        seed=run.run.checkpoint.seed,
        shift=options.shift,
        rank=0 if run.nystrom is None else run.nystrom.rank,
        error_bound=None if bound is None else bound * 2.0**exponents,
        history=tuple(run.history),
        rows=space.row_range,
    )


def _error_bound(run: SolveRun, options: SolveOptions) -> HostArray | None:
    """Bounds on the errors of the scaled solutions, (k,), from the lower bound of the spectrum."""
    lower, space = options.smallest, run.A.space
    # Without symmetry, the eigenvalues say nothing about the error.
    if lower is None or (options.method == "auto" and run.method == "lsmr"):
        return None
    eps = epsilon(space.xp, space.dtype)
    if run.least_quotient < lower - 32 * eps * run.norm:
        below = (run.least_quotient - lower) / (run.norm or 1.0)
        warn(
            f"lower={options.lower} is no lower bound of the spectrum: a Rayleigh quotient is "
            f"smaller by {-below:.1e} ||A||; there is no error bound, so pass a smaller number.",
            RuntimeWarning,
        )
        return None
    sizes = run.norm * to_host(space.norms(run.X)) + run.B.norms
    errors: HostArray = run.relative * run.B.norms + 4 * eps * sizes
    return errors / lower


def failure(solution: Solution, options: SolveOptions) -> str:
    """What did not converge, why, and what helps."""
    missing, worst = int((~solution.converged).sum()), float(solution.residuals.max())
    dtype = getattr(solution.values, "dtype", "")
    advice = {
        StoppingReason.ROUNDING: f"rounding in {dtype} limits the residuals, so pass "
        f"rtol={1.5 * worst:.0e} or more, or an operator of higher precision",
        StoppingReason.INCOMPATIBLE: "the values are least-squares solutions; pass a shift, or "
        "remove from B what is not in the range of A",
        StoppingReason.INCONSISTENT: "the matvecs are noisy or the operator is not Hermitian; "
        "check it with matfree.check_operator",
        StoppingReason.INDEFINITE: 'pass method="minres", or a larger shift',
        StoppingReason.CALLBACK: "pass this result as start to continue",
    }.get(
        StoppingReason(solution.reason),
        "raise max_matvecs, loosen rtol, pass a preconditioner, or pass this result as start",
    )
    tolerance = f"rtol={options.rtol:.1e}" if options.rtol else f"atol={options.atol:.1e}"
    return (
        f"{missing} of {len(solution.converged)} right-hand sides did not reach {tolerance} "
        f"within {solution.num_matvecs} matvecs (largest residual {worst:.1e} of ||b||; "
        f"{solution.reason}): {advice}."
    )
