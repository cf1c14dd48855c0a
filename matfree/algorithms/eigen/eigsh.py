r"""``eigsh``: a few eigenpairs of a Hermitian operator, complete and with honest residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree import probes
from matfree.algorithms.eigen.arguments import require_counts, residual_tolerance, warn_unconverged
from matfree.algorithms.eigen.eigen_search import EigenSearch, EigenStep
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator, adopted
from matfree.algorithms.running.run import Run
from matfree.arguments import Which
from matfree.protocol import Array, Seed
from matfree.results import EigenResult


def eigsh(
    A: Any,
    k: int = 6,
    *,
    which: Which = "LM",
    rtol: float | None = None,
    block_size: int = 2,
    num_vectors: int | None = None,
    max_matvecs: int | None = None,
    verify: bool = True,
    start: Array | EigenResult | None = None,
    seed: Seed = None,
    progress: bool = False,
    callback: Callable[[EigenStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> EigenResult:
    r"""k eigenpairs of a Hermitian operator by thick-restart block Lanczos.

    A u_i = theta_i u_i with ||A u_i - theta_i u_i|| <= rtol ||A||, orthonormal u_i, and a
    search for eigenvalues that the residuals cannot know of.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    k : int
        In [1, n].
    which : {"LM", "LA", "SA", "BE"}
        Largest in magnitude; largest; smallest (most negative); both ends, the odd one
        from the top. Results come best first, for "BE" in descending order.
    rtol : float, optional
        Bound on the residual relative to ||A||, itself estimated by the largest Ritz value;
        by default 1e-6, or 100 eps where that is more.
    block_size : int
        Vectors multiplied at once. A block sees that many copies of an eigenvalue at a time.
    num_vectors : int, optional
        Lanczos vectors kept before a restart; max(20, 4 k + 8), within n, by default.
    max_matvecs : int, optional
        The most products; max(1000, 100 k) by default.
    verify : bool
        Search the complement until nothing better is found, and recompute the residuals
        from fresh products; the result's ``verified`` says whether it got to the end.
    start : (n, b) array or EigenResult, optional
        Start vectors, b replacing ``block_size``: the eigenvectors of a nearby operator
        (the last checkpoint's) save most of the work.
    seed : int, None or numpy.random.Generator
        Of the start block, of replaced directions and of the search.
    progress : bool
        Show a progress bar of the pairs that have converged (needs tqdm).
    callback : function, optional
        Called with an ``EigenStep`` after each block product; returning True or raising
        StopIteration stops the run and keeps what it has.
    checkpoint : path, optional
        A file that holds the state of the run after every block product, from which it
        goes on when it is started again; as for :func:`matfree.trace`.

    Returns
    -------
    EigenResult

    Raises
    ------
    ValueError
        k not in [1, n], an unknown ``which``, or an argument out of range.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        A pair did not reach rtol within the budget.

    Cost
    ----
    As many matvecs as it takes, k more to recompute residuals, and the search, all counted
    in ``num_matvecs``. Memory: num_vectors + 2 k + 8 block_size vectors, whatever the
    number of restarts; k less without the search.

    References
    ----------
    K. Wu, H. Simon (2000), doi:10.1137/S0895479898334605. Bound behind the search: J.
    Kuczynski, H. Wozniakowski (1992), doi:10.1137/0613066.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[np.full(3, 8.0), np.linspace(-4, 5, 97)])
    >>> mf.eigsh(A, 4, seed=0).values.round(9)  # 8 three times: none is missed
    array([8., 8., 8., 5.])
    """
    A = CountedOperator(A)
    n = A.space.size
    require_counts(A, k, block_size=block_size, num_vectors=num_vectors, max_matvecs=max_matvecs)
    if which not in ("LM", "LA", "SA", "BE"):
        raise ValueError(
            f'which must be "LM", "LA", "SA" or "BE": got {which!r}; for eigenvalues inside the '
            "spectrum (the smallest in magnitude, say), pass the operator of the inverse."
        )
    run = Run("eigsh", Checkpoint(checkpoint, A, seed), progress=progress, callback=callback)
    search = EigenSearch(
        A,
        run,
        k=k,
        which=which,
        rtol=residual_tolerance(A, rtol),
        capacity=min(n, num_vectors or max(20, 4 * k + 8)),
        budget=max_matvecs or max(1000, 100 * k),
    )
    V = _start_vectors(A, start, min(block_size, n), search.seed)
    search.resume(V.shape[1])
    run.complete(k, lambda: search.complete(V, verify=verify), search.interrupted)
    result = search.result(search.reason, recompute=verify)
    warn_unconverged(result, "eigenpairs", k, search.rtol)
    return result


def _start_vectors(
    A: CountedOperator, start: Array | EigenResult | None, width: int, seed: int
) -> Array:
    """The start vectors: those given, or Gaussian ones."""
    space = A.space
    if start is None:
        return space.probes(width, seed=seed, kind="gaussian", stream=probes.START)
    return adopted(space, start.vectors if isinstance(start, EigenResult) else start, "start")
