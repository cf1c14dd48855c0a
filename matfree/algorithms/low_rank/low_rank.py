"""``low_rank``: an approximation of low rank with an estimate of its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from matfree.algorithms.low_rank.approximation import LowRank
from matfree.algorithms.low_rank.low_rank_run import LowRankRun, LowRankStep
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.magnitude import MagnitudeError, Rescaled
from matfree.algorithms.running.plan import Plan, require_budget
from matfree.algorithms.running.run import Run
from matfree.arguments import block_size_for, require_whole
from matfree.errors import ConvergenceWarning, OperatorError, warn
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Seed

_OVERSAMPLING = 10
"""Columns of a sketch beyond the rank that is wanted, at least."""

_DEFAULT_RTOL = 1e-2
"""The tolerance if neither a rank nor a tolerance is given."""

_DEFAULT_BUDGET = 1000
"""The budget of matvecs if a tolerance is given without one."""


def low_rank(
    A: Any,
    rank: int | None = None,
    rtol: float | None = None,
    *,
    positive: bool | None = None,
    max_matvecs: int | None = None,
    block_size: int | None = None,
    seed: Seed = None,
    progress: bool = False,
    callback: Callable[[LowRankStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> LowRank:
    r"""An approximation of low rank as an operator, with an estimate of its error.

    .. math:: A \approx U \operatorname{diag}(s) V^H, \qquad
        \|A - U \operatorname{diag}(s) V^H\|_F \le \mathtt{rtol} \, \|A\|_F.

    It is computed from the matvecs Y = A W with Gaussian vectors W: for a positive semidefinite
    operator the Nystrom approximation :math:`Y (W^H Y)^{-1} Y^H`, otherwise the projection
    :math:`Q Q^H A` onto the range of Y, or :math:`Q Q^H A Q Q^H` if A is Hermitian.

    Parameters
    ----------
    A : operator, or anything ``aslinearoperator`` accepts
        (m, n) of any shape, real or complex; with an adjoint unless it is Hermitian.
    rank : int, optional
        The rank r in [1, min(m, n)]. The sketch has max(10, r / 10) columns more.
    rtol : float, optional
        The bound on the estimated error in the Frobenius norm relative to ||A||_F; 1e-2 if no
        rank is given. The sketch grows until it is met, and the result has the smallest rank
        for which it is met. It excludes ``rank``.
    positive : bool, optional
        Whether A is Hermitian and positive semidefinite, which saves the matvecs with Q. None
        decides from the sketch.
    max_matvecs : int, optional
        The largest number of matvecs with A and A^H together; 1000 by default with ``rtol``, and
        what the rank needs otherwise.
    block_size : int, optional
        The number of vectors per matmat.
    seed : int, None or numpy.random.Generator
        The seed of W.
    progress : bool
        Whether to show a progress bar of the columns of the sketch (requires tqdm).
    callback : function, optional
        It is called with a ``LowRankStep`` after each estimate of the error. Returning True or
        raising StopIteration stops the run with the sketch so far.
    checkpoint : path, optional
        A file that stores the state of the run after each block of the sketch, and from which
        the same call resumes; see :func:`matfree.trace`.

    Returns
    -------
    LowRank
        An operator with ``values``, ``left`` and ``right`` (``eigenvalues`` and ``eigenvectors``
        if it is Hermitian), ``error_frobenius`` and ``error_spectral``, ``solve(B, shift)`` and
        ``logdet(shift)``, which can be saved.

    Raises
    ------
    ValueError
        ``rank`` is not in [1, min(m, n)], it is given together with ``rtol``, another argument is
        out of range, or the checkpoint belongs to another run.
    OperatorError
        ``positive=True``, but a Rayleigh quotient is negative.
    NotHermitianError
        ``positive=True``, but the matvecs contradict A = A^H.
    NoAdjointError
        A is not Hermitian, and its adjoint is unknown.
    NonFiniteError
        A matvec contains NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        The budget ended before the tolerance was met.

    Cost
    ----
    One matvec per column of the sketch if A is positive semidefinite, two otherwise. The estimate
    of the error (leave-one-out) costs none. Memory: 3 vectors per column of the sketch, 7 if A
    is not Hermitian, and small matrices of its number of columns.

    References
    ----------
    N. Halko, P. G. Martinsson, J. A. Tropp (2011), Finding structure with randomness,
    doi:10.1137/090771806. J. A. Tropp, A. Yurtsever, M. Udell, V. Cevher (2017), arXiv:1706.05736.
    Errors: E. N. Epperly, J. A. Tropp (2024), doi:10.1137/23M1558537.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(2.0 ** -np.arange(100))
    >>> found = mf.low_rank(A, rtol=1e-3, seed=0)
    >>> found.rank < 20, bool(np.linalg.norm(A - found.to_dense()) < 1e-3 * np.linalg.norm(A))
    (True, True)
    """
    operator = aslinearoperator(A)
    _require_valid(operator, rank, rtol, max_matvecs)
    if positive and operator.shape[0] != operator.shape[1]:
        raise OperatorError(
            f"positive=True needs a square operator: got shape {operator.shape}; pass "
            "positive=False for the singular value decomposition."
        )
    if rank is None and rtol is None:
        rtol = _DEFAULT_RTOL

    def compute(given: Operator, unit: float = 1.0) -> LowRank:
        nonlocal seed
        A = CountedOperator(given, square=False, remedy="pass positive=False")
        opened = Checkpoint(checkpoint, A, seed)
        seed = opened.seed  # so that a second run makes the same first call
        user = callback
        if callback is not None and unit != 1:
            user = lambda step: callback(step.times(unit))  # noqa: E731
        run = Run("low_rank", opened, progress=progress, callback=user)
        return _computed(A, run, rank, rtol, positive, max_matvecs, block_size)

    try:
        found = compute(operator)
    except MagnitudeError as failure:
        unit = 2.0**failure.exponent
        rescaled = Rescaled(operator, failure)
        found = compute(rescaled, unit).times(unit)
        cost = found.num_matvecs + rescaled.num_lost
        found = replace(found, num_matvecs=cost, vector_spaces=(found.space, found.domain))
    if not found.converged:
        warn(
            f"the error of rank {found.rank} is {found.error_frobenius / found.norm_frobenius:.1e} "
            f"||A||_F after {found.num_matvecs} matvecs ({found.reason}), above rtol={rtol:.1e}; "
            "raise max_matvecs, or loosen rtol.",
            ConvergenceWarning,
        )
    return found


def _computed(
    A: CountedOperator,
    run: Run[LowRankStep],
    rank: int | None,
    rtol: float | None,
    positive: bool | None,
    max_matvecs: int | None,
    block_size: int | None,
) -> LowRank:
    """The approximation of an operator in range."""
    smallest, each = min(A.operator.shape), 1 if positive else 2
    wanted = smallest if rank is None else min(smallest, rank + max(_OVERSAMPLING, rank // 10))
    budget = max_matvecs or (_DEFAULT_BUDGET if rank is None else each * wanted)
    require_budget(budget, each * (rank or 2), "a sketch")
    most = min(wanted, budget // each)
    # The number of columns per block must not depend on where the sketch ends.
    width = block_size_for(A.space.size, A.block_size(block_size))
    plan = Plan(None, budget, rtol, None, width, run.checkpoint.seed, "gaussian")
    work = LowRankRun(A, run, plan, rank=rank, positive=positive)
    problem = {
        "estimator": "low_rank",
        "seed": plan.seed,
        "rank": rank,
        "rtol": rtol,
        "positive": positive,
        "block_size": width,
    }
    if run.checkpoint.is_stored and A.space.is_sharded and len(set(A.operator.shape)) > 1:
        raise OperatorError("a checkpoint of sharded vectors needs a square operator.")
    run.checkpoint.resume(problem, work)
    run.complete(most, lambda: work.complete(most), work.interrupted)
    return work.result()


def _require_valid(
    operator: Operator, rank: int | None, rtol: float | None, max_matvecs: int | None
) -> None:
    m, n = operator.shape
    if m == 0 or n == 0:
        raise OperatorError(f"the operator must not be empty: got shape ({m}, {n}).")
    require_whole("rank", rank)
    require_whole("max_matvecs", max_matvecs)
    if rank is not None and rank > min(m, n):
        raise ValueError(
            f"rank must be in [1, min(m, n)]: got {rank} for an operator of shape ({m}, {n}); pass "
            f"{min(m, n)} or less."
        )
    if rtol is not None and (not isinstance(rtol, int | float | np.number) or not 0 < rtol < 1):
        raise ValueError(
            f"rtol must be between 0 and 1: got {rtol!r}; it bounds the error relative to ||A||_F, "
            "so pass a number such as 1e-3."
        )
    if rank is not None and rtol is not None:
        raise ValueError(
            "give either rank or rtol (with max_matvecs for the largest sketch), not both."
        )
