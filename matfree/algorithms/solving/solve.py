"""``solve``: linear systems and least-squares problems, with true residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree.algorithms.running.checkpoint import PathLike
from matfree.algorithms.solving.solve_options import SolveMethod, SolveOptions
from matfree.algorithms.solving.solver import SolveStep
from matfree.algorithms.solving.systems import failure, find_solution
from matfree.errors import ConvergenceWarning, warn
from matfree.operators import aslinearoperator
from matfree.protocol import Array, Seed
from matfree.results import Solution


def solve(
    A: Any,
    B: Array,
    *,
    shift: complex = 0.0,
    method: SolveMethod = "auto",
    preconditioner: Any = None,
    rank: int | None = None,
    rtol: float = 1e-6,
    atol: float = 0.0,
    start: Array | Solution | None = None,
    lower: float | None = None,
    block_size: int | None = None,
    max_matvecs: int | None = None,
    seed: Seed = None,
    progress: bool = False,
    callback: Callable[[SolveStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> Solution:
    r"""Solve (A + shift I) X = B for one or many right-hand sides, or a least-squares problem.

    .. math::

        \|b_j - (A + \sigma I) x_j\| \le \max(\mathtt{rtol} \, \|b_j\|, \mathtt{atol}),
        \qquad j = 1, \dots, k.

    These are residuals of actual matvecs with X at the end, not those of a recurrence. If A is
    rectangular, x_j minimizes the residual.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
        (n, n), real or complex; (m, n) for least-squares problems, with an adjoint.
    B : (n,) or (n, k) array
        The right-hand sides, which are converted to the operator's array library, data type and
        device; (m,) or (m, k) if A is rectangular.
    shift : float or complex
        The number sigma; 0 if A is rectangular.
    method : {"auto", "cg", "minres", "lsmr"}
        "cg" (block conjugate gradients) requires a Hermitian positive definite A + sigma I,
        "minres" a Hermitian one; "lsmr" requires an adjoint. "auto" begins with "cg",
        continues with "minres" if it finds a direction of negative or zero curvature, and changes
        to "lsmr" if the matvecs contradict A = A^H. For a rectangular A it is "lsmr".
    preconditioner : operator or "nystrom", optional
        A Hermitian positive definite approximation of (A + sigma I)^-1, for "cg" and "minres".
        "nystrom" computes one from a sketch of a positive semidefinite A, whose eigenvalues
        decay; :meth:`matfree.LowRank.preconditioner` makes one from an approximation at hand.
    rank : int, optional
        The rank of the Nystrom preconditioner. By default, it grows while fewer matvecs are
        expected in all, up to 500; without a positive ``shift`` or ``lower``, it is 50.
    rtol, atol : float
        The bounds on residuals: relative to ||b_j||, and absolute.
    start : (n,) or (n, k) array or Solution, optional
        Approximate solutions, such as those of the previous training step. They cost k matvecs.
    lower : float, optional
        A lower bound of the eigenvalues of a Hermitian A, such as 0 if A is positive
        semidefinite. If lower + sigma > 0, the result has an ``error_bound``.
    block_size : int, optional
        The number of right-hand sides that advance together, in one matmat per step; 32 by
        default. Conjugate gradients share one Krylov space among them.
    max_matvecs : int, optional
        The largest number of matvecs with A and with A^H together; by default k times 10 n, but
        between 1000 k and 10000 k.
    seed : int, None or numpy.random.Generator
        The seed of the sketch of the Nystrom preconditioner.
    progress : bool
        Whether to show a progress bar of the right-hand sides that have converged (requires
        tqdm).
    callback : function, optional
        It is called with a ``SolveStep`` after each step. Returning True or raising StopIteration
        stops the run with the solutions found so far.
    checkpoint : path, optional
        A file that stores the state of the run after each step, and from which the same call
        resumes; see :func:`matfree.trace`.

    Returns
    -------
    Solution
        ``values`` of the shape of the unknowns, ``residuals`` (k,) relative to ||b_j||,
        ``converged`` (k,), ``error_bound`` (k,) or None, and ``reason``.

    Raises
    ------
    ValueError
        B or ``start`` has the wrong shape, contains NaN, or is complex for a real operator; an
        argument is out of range; max_matvecs does not suffice for one step; the preconditioner
        is not positive definite; or the checkpoint belongs to another run.
    NotHermitianError
        The matvecs contradict A = A^H for "cg" or "minres", or for "auto" without an adjoint.
    NoAdjointError
        "lsmr" needs the adjoint, and A has none.
    NonFiniteError
        A matvec contains NaN or infinity.
    OverflowError
        The solution exceeds the range of the data type.

    Warns
    -----
    ConvergenceWarning
        A residual exceeds its bound: the budget ended first, rounding hides what is smaller, B is
        not in the range of a singular operator, or the operator is not positive definite for
        "cg". The best vectors found are returned.
    RuntimeWarning
        A Rayleigh quotient contradicts ``lower``; there is no error bound then.

    Cost
    ----
    At most k matvecs per step, or 2 k for "lsmr", and k for the true residuals; one per column of
    the Nystrom sketch. The width of the block decreases while right-hand sides converge. Memory:
    2 k vectors for B and X; 11 vectors per right-hand side of a block for "cg", 12 for "minres",
    13 for "lsmr"; and 3 vectors per column of the sketch.

    References
    ----------
    M. R. Hestenes, E. Stiefel (1952), doi:10.6028/jres.049.044; D. P. O'Leary (1980),
    doi:10.1016/0024-3795(80)90247-5; C. C. Paige, M. A. Saunders (1975), doi:10.1137/0712047;
    D. C.-L. Fong, M. A. Saunders (2011), doi:10.1137/10079687X. True residuals: A. Greenbaum
    (1997), Estimating the attainable accuracy of recursively computed residual methods,
    doi:10.1137/S0895479895284944. Preconditioner: Z. Frangella, J. A. Tropp, M. Udell (2023),
    doi:10.1137/21M1466244.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[-1.0, np.linspace(1, 2, 99)])
    >>> solution = mf.solve(A, np.ones(100))
    >>> solution.method, float(np.round(solution.values[0], 5))
    ('conjugate gradients, then MINRES', -1.0)
    """
    options = SolveOptions(
        shift=shift,
        method=method,
        preconditioner=preconditioner,
        rank=rank,
        rtol=rtol,
        atol=atol,
        lower=lower,
        block_size=block_size,
        max_matvecs=max_matvecs,
        seed=seed,
        progress=progress,
        callback=callback,
        checkpoint=checkpoint,
    )
    solution = find_solution(aslinearoperator(A), B, options, start=start)
    if not solution.converged.all():
        warn(failure(solution, options), ConvergenceWarning)
    return solution
