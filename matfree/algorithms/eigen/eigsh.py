"""``eigsh``: a few eigenpairs of a Hermitian operator, verified to be complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matfree import probes
from matfree.algorithms.eigen.arguments import (
    EigenStep,
    Tolerance,
    krylov_matvecs,
    require_counts,
    require_num_pairs,
    warn_unconverged,
)
from matfree.algorithms.eigen.eigen_search import EigenSearch
from matfree.algorithms.eigen.transformed_problem import AnyWhich
from matfree.algorithms.eigen.transformed_search import find_transformed
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator, converted_block
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.plan import require_budget
from matfree.algorithms.running.run import Run
from matfree.arguments import Which
from matfree.protocol import Array, Seed
from matfree.results import EigenResult

BLOCK_SIZE = 2
"""The default number of vectors per matmat."""


@equivariant("sigma")
def eigsh(
    A: Any,
    k: int = 6,
    *,
    which: AnyWhich = "LM",
    sigma: float | None = None,
    M: Any = None,
    Minv: Any = None,
    OPinv: Any = None,
    rtol: float | None = None,
    block_size: int = BLOCK_SIZE,
    num_vectors: int | None = None,
    max_matvecs: int | None = None,
    verify: bool = True,
    start: Array | EigenResult | None = None,
    seed: Seed = None,
    progress: bool = False,
    callback: Callable[[EigenStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> EigenResult:
    r"""k eigenpairs of a Hermitian operator, by thick-restart block Lanczos.

    The eigenvectors u_i are orthonormal, and

    .. math::

        \|A u_i - \theta_i u_i\| \le \mathtt{rtol} \, \|A\|, \qquad i = 1, \dots, k.

    Small residuals do not exclude that an eigenvalue was missed. Therefore the orthogonal
    complement of the eigenvectors is searched for better ones.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
        (n, n), real or complex.
    k : int
        The number of eigenpairs, in [1, n].
    which : {"LM", "LA", "SA", "BE", "SM"}
        The eigenvalues that are largest in magnitude; the largest; the smallest (most
        negative); those at both ends of the spectrum, with one more from the upper end if k
        is odd; or those of smallest magnitude, which is sigma = 0 with "LM". They are sorted with
        the best first, and in descending order for "BE". If sigma is given, all this refers to
        1 / (lambda - sigma), so that "LM" gives the eigenvalues nearest to sigma.
    sigma : float, optional
        A point near which eigenvalues are wanted. If it is an eigenvalue, a point nearby is used.
    M : operator, optional
        (n, n), Hermitian positive definite: the problem is A u = lambda M u, and the eigenvectors
        are M-orthonormal, u_i^H M u_j = delta_ij.
    Minv : operator, optional
        x -> M^-1 x, needed for a generalized problem without sigma; by default
        ``matfree.inverse(M)``.
    OPinv : operator, optional
        x -> (A - sigma M)^-1 x. The default is ``matfree.inverse``, by conjugate gradients or
        MINRES, with residuals of 0.01 rtol; a factorization is much faster if there is one.
    rtol : float, optional
        The bound on residuals relative to ||A||, which is estimated by the largest absolute
        Ritz value. The default is 1e-6, or 100 eps of the data type if that is larger.
    block_size : int
        The number of vectors per matmat. A Krylov space finds at most this many copies of a
        multiple eigenvalue; further copies are left to the verification search.
    num_vectors : int, optional
        The number of Lanczos vectors at which the method restarts, at least k + 2. The default
        is max(20, 4 k + 8), but at most n.
    max_matvecs : int, optional
        The largest number of matvecs, those of the verification search and of the recomputed
        residuals included; max(1000, 100 k) by default. With sigma, M or "SM" it is the number of
        products with the inverse, or with M^-1 A.
    verify : bool
        Whether to search the orthogonal complement until nothing better is found, and to
        recompute the residuals from matvecs with the eigenvectors. ``verified`` of the result
        says whether the search was completed.
    start : (n, b) array or EigenResult, optional
        Start vectors of the operator's array library; b then replaces ``block_size``. The
        eigenvectors of a nearby operator, such as that of the previous epoch, save most of the
        work. The default is a Gaussian block.
    seed : int, None or numpy.random.Generator
        The seed of the start block, of the directions that replace lost ones, and of the
        verification search.
    progress : bool
        Whether to show a progress bar of the eigenpairs that have converged (requires tqdm).
    callback : function, optional
        It is called with an ``EigenStep`` after each block of matvecs. Returning True or
        raising StopIteration stops the run with the eigenpairs found so far.
    checkpoint : path, optional
        A file that stores the state of the run after each block of matvecs, and from which the
        same call resumes; see :func:`matfree.trace`.

    Returns
    -------
    EigenResult
        ``values`` (k,) float64, ``vectors`` (n, k) in the operator's library, data type and
        device, and ``residuals`` (k,) relative to ||A||. They and ``verified`` refer to the
        original problem: ||A u_i - lambda_i M u_i|| / (||A|| ||u_i||), with an estimate of ||A||
        from 10 Lanczos steps if sigma, M or "SM" is given.

    Raises
    ------
    ValueError
        k is not in [1, n], ``which`` is unknown, another argument is out of range, max_matvecs
        does not suffice for a Krylov space of k vectors, ``start`` has the wrong number of rows,
        or the checkpoint belongs to another run.
    NotHermitianError
        The matvecs of the run contradict A = A^H.
    NonFiniteError
        A matvec contains NaN or infinity.
    SolveError
        A system with A - sigma M or M could not be solved.
    OperatorError
        M, Minv or OPinv has another shape than A, OPinv or Minv is not the inverse, or M is not
        positive definite.

    Warns
    -----
    ConvergenceWarning
        An eigenpair did not reach rtol within the budget, or within the rounding of the dtype.

    Cost
    ----
    The number of Lanczos steps depends on the spectrum. max_matvecs bounds their matvecs, those
    of the verification search and k for the recomputed residuals. A checkpoint costs one more
    per start of the run. All of them are counted in ``num_matvecs``, and so are the matvecs of
    systems that are solved: the square root of the condition number of A - sigma M times a few
    for each product. M is applied once per inner product of blocks. Memory: num_vectors +
    2 k + 8 block_size vectors, regardless of the number of restarts; k less without ``verify``.

    References
    ----------
    K. Wu, H. Simon (2000), Thick-restart Lanczos method for large symmetric eigenvalue
    problems, doi:10.1137/S0895479898334605. The verification search relies on J. Kuczynski, H.
    Wozniakowski (1992), Estimating the largest eigenvalue by the power and Lanczos algorithms
    with a random start, doi:10.1137/0613066.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag(np.r_[np.full(3, 8.0), np.linspace(-4, 5, 97)])
    >>> mf.eigsh(A, 4, seed=0).values.round(9)  # all three copies of the eigenvalue 8
    array([8., 8., 8., 5.])
    >>> mf.eigsh(A, 2, sigma=0.4, seed=0).values.round(6)  # those nearest to 0.4
    array([0.40625, 0.3125 ])
    """
    A = CountedOperator(A)
    tolerance = Tolerance.of(A, rtol)
    options: dict[str, Any] = {
        "block_size": block_size,
        "num_vectors": num_vectors,
        "verify": verify,
        "seed": seed,
        "progress": progress,
        "checkpoint": checkpoint,
    }
    budget: dict[str, Any] = {"max_matvecs": max_matvecs, "start": start, "callback": callback}
    if which == "SM" or any(x is not None for x in (sigma, M, Minv, OPinv)):
        require_num_pairs(A, k)
        result = find_transformed(
            A,
            k,
            which=which,
            sigma=sigma,
            OPinv=OPinv,
            inverses={"M": M, "Minv": Minv},
            tolerance=tolerance,
            find=find_eigenpairs,
            **budget,
            **options,
        )
    else:
        options |= {"tolerance": tolerance, "recompute": verify}
        result = find_eigenpairs(A, k, which=which, **budget, **options)
    warn_unconverged(result, "eigenpairs", k, tolerance.rtol, str(A.space.dtype))
    return result


def find_eigenpairs(
    A: CountedOperator,
    k: int,
    *,
    which: Which,
    tolerance: Tolerance,
    verify: bool,
    recompute: bool,
    seed: Seed,
    block_size: int = BLOCK_SIZE,
    num_vectors: int | None = None,
    max_matvecs: int | None = None,
    start: Array | EigenResult | None = None,
    progress: bool = False,
    callback: Callable[[EigenStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> EigenResult:
    """The work of :func:`eigsh`, without a warning if it does not converge.

    Parameters
    ----------
    tolerance : Tolerance
        The bound on residuals relative to ||A||.
    recompute : bool
        Whether to recompute the residuals from k more matvecs, if the budget suffices.
    A, k, which, verify, seed, block_size, num_vectors, max_matvecs, start
        As for :func:`eigsh`.
    progress, callback, checkpoint
        As for :func:`eigsh`.
    """
    n = A.space.size
    require_counts(A, k, block_size=block_size, num_vectors=num_vectors, max_matvecs=max_matvecs)
    if which not in ("LM", "LA", "SA", "BE"):
        raise ValueError(
            f'which must be "LM", "LA", "SA", "BE" or "SM": got {which!r}; for eigenvalues near a '
            "number, pass it as sigma."
        )
    run = Run("eigsh", Checkpoint(checkpoint, A, seed), progress=progress, callback=callback)
    V = _start_vectors(A, start, min(block_size, n), run.checkpoint.seed)
    budget = max_matvecs or max(1000, 100 * k)
    least = krylov_matvecs(k, V.shape[1], n)
    require_budget(budget, least, f"a Krylov space of {k} vectors")
    recompute = recompute and budget >= least + k
    search = EigenSearch(
        A,
        run,
        k=k,
        which=which,
        tolerance=tolerance,
        capacity=min(n, num_vectors or max(20, 4 * k + 8)),
        budget=budget - k if recompute else budget,
    )
    search.resume(V.shape[1])
    run.complete(k, lambda: search.complete(V, verify=verify), search.interrupted)
    return search.result(search.reason, recompute=recompute)


def _start_vectors(
    A: CountedOperator, start: Array | EigenResult | None, width: int, seed: int
) -> Array:
    """The start block: the given vectors, or a Gaussian block of the given width."""
    space = A.space
    if start is None:
        return space.probes(width, seed=seed, kind="gaussian", stream=probes.START)
    return converted_block(
        space, start.vectors if isinstance(start, EigenResult) else start, "start"
    )
