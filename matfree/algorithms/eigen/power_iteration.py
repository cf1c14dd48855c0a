r"""``power_iteration``: power iteration with deflation, stopped by the residual.

The iteration v <- A v / ||A v|| converges to the eigenvector of the eigenvalue that is largest in
magnitude. The error decreases by the factor |lambda_2 / lambda_1| per step. The Rayleigh quotient
theta = v^H A v is not a safe stopping test, because it can stagnate long before v is close to
an eigenvector; for eigenvalues of equal magnitude and opposite sign, v never is. The residual is
safe, because some eigenvalue lambda always satisfies

.. math:: |\lambda - \theta| \le \|A v - \theta v\|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from matfree.algorithms.eigen.arguments import Tolerance, require_num_pairs, rounding_advice
from matfree.algorithms.eigen.power_search import PowerSearch, PowerStep
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.run import Run
from matfree.arguments import require_whole
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import Seed
from matfree.results import EigenResult, StoppingReason


@equivariant()
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
    r"""The k eigenvalues that are largest in magnitude, by power iteration with deflation.

    One eigenpair after the other is iterated,

    .. math::

        v \leftarrow \frac{A v}{\|A v\|}, \qquad \theta = v^H A v, \qquad \text{until} \quad
        \|A v - \theta v\| \le \mathtt{rtol} \, \|A\|,

    each in the orthogonal complement of the vectors found before. A final Rayleigh-Ritz step
    rotates all k vectors to the eigenvectors of the k x k projection of A.

    The error decreases like |lambda_{k+1} / lambda_k| to the power of the number of steps. If
    two eigenvalues have equal magnitude and opposite signs, the iteration does not converge: the
    residual stagnates, ``converged`` is False, and a warning is issued.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
        (n, n), real or complex.
    k : int
        The number of eigenpairs, in [1, n].
    rtol : float
        The bound on residuals relative to ||A||_2, which is estimated by the largest ||A v||
        over the unit vectors v of the iteration.
    max_steps : int
        The maximum number of steps per eigenpair.
    seed : int, None or numpy.random.Generator
        The seed of the Gaussian start vectors.
    progress : bool
        Whether to show a progress bar of the eigenpairs (requires tqdm).
    callback : function, optional
        It is called with a ``PowerStep`` every 5 steps. Returning True or raising StopIteration
        ends the iteration for this eigenpair and begins the next one.
    checkpoint : path, optional
        A file that stores the state of the run every 5 steps, and from which the same call
        resumes; see :func:`matfree.trace`.

    Returns
    -------
    EigenResult
        ``values`` (k,) float64 sorted by magnitude, ``vectors`` (n, k) in the operator's
        library, data type and device, and ``residuals`` (k,) relative to ||A||. ``history``
        contains (pair, theta, relative residual) for every step of every eigenpair.

    Raises
    ------
    ValueError
        k is not in [1, n], rtol or max_steps is not positive, or the checkpoint belongs to
        another run.
    NotHermitianError
        The matvecs of the run contradict A = A^H.
    NonFiniteError
        A matvec contains NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        The residual of an eigenpair exceeds rtol after max_steps steps.

    Cost
    ----
    One matvec per step, at most k * max_steps, and one per start of a run with a checkpoint.
    Memory: 2 k + 6 vectors, and 6 k + 1 during the final rotation.

    References
    ----------
    R. von Mises, H. Pollaczek-Geiringer (1929), Praktische Verfahren der Gleichungsauflösung,
    doi:10.1002/zamm.19290090206.

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
    require_num_pairs(A, k)
    tolerance = Tolerance.of(A, rtol)
    require_whole("max_steps", max_steps)
    run = Run(
        "power iteration", Checkpoint(checkpoint, A, seed), progress=progress, callback=callback
    )
    search = PowerSearch(A, run, k, tolerance, max_steps)
    result = run.complete(k, search.complete, search.interrupted)
    if not result.converged.all():
        _warn_unconverged_pairs(result, rtol, max_steps, str(A.space.dtype))
    return result


def _warn_unconverged_pairs(result: EigenResult, rtol: float, max_steps: int, dtype: str) -> None:
    missing, worst = int(np.sum(~result.converged)), float(result.residuals.max())
    reached = f"did not reach rtol={rtol:g} (largest residual {worst:.1e} of ||A||)"
    if result.reason == StoppingReason.ROUNDING:
        advice = rounding_advice(worst, dtype)
    else:
        advice = (
            f"raise max_steps, which is {max_steps}, or loosen rtol; if there are eigenvalues of "
            "equal magnitude and opposite sign, which power iteration cannot separate, use eigsh"
        )
    warn(f"{missing} of {len(result.values)} eigenpairs {reached}: {advice}.", ConvergenceWarning)
