r"""``svds``: a few singular triplets of any operator, complete and with honest residuals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from matfree import probes
from matfree.algorithms.eigen.arguments import require_counts, residual_tolerance, warn_unconverged
from matfree.algorithms.eigen.eigen_search import EigenStep
from matfree.algorithms.eigen.singular_search import SingularSearch
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator, adopted
from matfree.algorithms.running.run import interruptible
from matfree.arrays import to_host
from matfree.errors import OperatorError
from matfree.operators import Operator
from matfree.protocol import Array, Seed
from matfree.results import SingularResult, archive


def svds(
    A: Any,
    k: int = 6,
    *,
    rtol: float | None = None,
    block_size: int = 2,
    num_vectors: int | None = None,
    max_matvecs: int | None = None,
    verify: bool = True,
    start: Array | SingularResult | None = None,
    seed: Seed = None,
    progress: bool = False,
    callback: Callable[[EigenStep], bool | None] | None = None,
    checkpoint: PathLike | None = None,
) -> SingularResult:
    r"""The k largest singular values of an operator, with their vectors.

    A v_i = sigma_i u_i and A^H u_i = sigma_i v_i, both up to rtol ||A||, with orthonormal
    u_i and orthonormal v_i. The vectors are searched for as eigenvectors of A^H A or A A^H,
    the smaller of the two; values and residuals come from A itself, so that small singular
    values do not lose half of their digits to the squares.

    Parameters
    ----------
    A : operator with its adjoint, or anything ``aslinearoperator`` accepts
        (m, n), of any shape, real or complex.
    k : int
        In [1, min(m, n)].
    rtol : float, optional
        Bound on both residuals relative to ||A||; by default 1e-6, or 100 eps where that is
        more. Singular values further down than that are not told apart.
    block_size, num_vectors, verify
        As for :func:`matfree.eigsh`.
    max_matvecs : int, optional
        The most products, of A and of A^H together; max(2000, 200 k) by default.
    start : (n, b) array or SingularResult, optional
        Start vectors, b replacing ``block_size``: the triplets of a nearby operator.
    seed, progress
        As for :func:`matfree.eigsh`.
    callback : function, optional
        Called with an ``EigenStep`` after each block product, of singular values and the
        residuals expected of them; returning True or raising StopIteration stops the run.
    checkpoint : path, optional
        As for :func:`matfree.eigsh`; where small singular values take more than one round,
        each has a file of its own beside it.

    Returns
    -------
    SingularResult
        ``left`` (m, k), ``values`` (k,) descending, ``right`` (n, k).

    Raises
    ------
    ValueError
        k not in [1, min(m, n)], or an argument out of range.
    OperatorError
        A has no adjoint, or one that is not that of its products.
    NonFiniteError
        A product holds NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        A triplet did not reach rtol within the budget.

    Cost
    ----
    Two products a step of Lanczos, 4 k for the values and residuals of each round, and 1 for
    the scale of A: all counted in ``num_matvecs``. Memory: that of ``eigsh``, and 4 k vectors.

    References
    ----------
    G. H. Golub, W. Kahan (1965), doi:10.1137/0702016. On what the squares lose: M. E.
    Hochstenbach (2001), A Jacobi-Davidson type SVD method, doi:10.1137/S1064827500372973.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.zeros((50, 30))
    >>> A[range(4), range(4)] = 8.0, 3.0, 1e-3, 1e-10  # its square is 1.6e-22 of the largest
    >>> mf.svds(A, 4, rtol=1e-13, seed=0).values
    array([8.e+00, 3.e+00, 1.e-03, 1.e-10])
    """
    A = CountedOperator(A, square=False)
    operator = A.operator
    require_counts(A, k, block_size=block_size, num_vectors=num_vectors, max_matvecs=max_matvecs)
    rtol = residual_tolerance(A, rtol)
    seed = Checkpoint(checkpoint, A, seed).seed  # every round opens the file of its own search
    scale = _scale(operator, seed)
    block, spent = _start_on_shorter_side(operator * (1 / scale), start)
    search = SingularSearch(
        operator,
        scale=scale,
        k=k,
        rtol=rtol,
        budget=max_matvecs or max(2000, 200 * k),
        spent=1 + spent,
        seed=seed,
        options={
            "block_size": block_size,
            "num_vectors": num_vectors,
            "verify": verify,
            "progress": progress,
        },
        callback=callback,
        checkpoint=None if checkpoint is None else archive.npz_path(checkpoint),
    )
    result = interruptible(lambda: search.complete(block), search.interrupted)
    warn_unconverged(result, "singular triplets", k, rtol)
    return result


def _scale(operator: Operator, seed: int) -> float:
    """A power of 2 near ||A^H w|| / ||w||, from the first product of all.

    Squares of numbers near 1e30 or 1e-30 leave the range of single precision; those of A
    divided by this do not, and the division is exact.
    """
    w = operator.space.probes(1, seed=seed, kind="gaussian", stream=probes.CHECK)
    adjoint = CountedOperator(operator.H, square=False)
    try:
        sizes = to_host(operator.domain.norms(adjoint(w))) / to_host(operator.space.norms(w))
    except NotImplementedError as cause:
        raise OperatorError(
            f"svds needs the adjoint of {operator!r}: give it rmatvec (A^H x); for a Hermitian "
            "operator that is matvec itself, and eigsh does without."
        ) from cause
    adjoint.require_finite(sizes)
    return float(2.0 ** round(math.log2(sizes[0]))) if sizes[0] > 0 else 1.0


def _start_on_shorter_side(
    operator: Operator, start: Array | SingularResult | None
) -> tuple[Array | None, int]:
    """Start vectors on the shorter side, and the products that it took to get them there."""
    if start is None:
        return None, 0
    wide = operator.shape[0] < operator.shape[1]
    if isinstance(start, SingularResult):
        space = operator.space if wide else operator.domain
        return adopted(space, start.left if wide else start.right, "start"), 0
    block = adopted(operator.domain, start, "start")
    return (operator.matmat(block), block.shape[1]) if wide else (block, 0)
