"""``svds``: a few singular triplets of a rectangular operator, verified to be complete."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from matfree import probes
from matfree.algorithms.eigen.arguments import (
    EigenStep,
    Tolerance,
    require_counts,
    warn_unconverged,
)
from matfree.algorithms.eigen.singular_search import SingularSearch, round_matvecs
from matfree.algorithms.running.checkpoint import Checkpoint, PathLike
from matfree.algorithms.running.counted_operator import CountedOperator, converted_block
from matfree.algorithms.running.magnitude import equivariant
from matfree.algorithms.running.plan import require_budget
from matfree.algorithms.running.run import interruptible
from matfree.arrays import to_host
from matfree.errors import NoAdjointError, OperatorError
from matfree.operators import Operator
from matfree.protocol import Array, Seed
from matfree.results import SingularResult
from matfree.results.files import archive


@equivariant()
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
    r"""The k largest singular values of an operator, with their singular vectors.

    The left singular vectors u_i are orthonormal, the right singular vectors v_i as well, and

    .. math::

        \|A v_i - \sigma_i u_i\|, \ \|A^H u_i - \sigma_i v_i\| \le \mathtt{rtol} \, \|A\|,
        \qquad i = 1, \dots, k.

    The vectors are computed as eigenvectors of A^H A or A A^H, whichever is smaller. Values and
    residuals are computed from A itself, so that small singular values do not lose half of
    their digits to squaring.

    Parameters
    ----------
    A : operator with an adjoint, or anything ``aslinearoperator`` accepts
        (m, n) of any shape, real or complex.
    k : int
        The number of singular triplets, in [1, min(m, n)].
    rtol : float, optional
        The bound on both residuals relative to ||A||, which is estimated by the largest singular
        value found. The default is 1e-6, or 100 eps of the data type if that is larger. Singular
        values below rtol ||A|| are not distinguished from each other.
    block_size, num_vectors, verify
        As for :func:`matfree.eigsh`.
    max_matvecs : int, optional
        The largest number of matvecs with A and with A^H together, those of the verification
        search and of the residuals included; max(2000, 200 k) by default.
    start : (n, b) array or SingularResult, optional
        Start vectors, whose number replaces ``block_size``, or the triplets of a nearby
        operator. The default is a Gaussian block.
    seed, progress
        As for :func:`matfree.eigsh`.
    callback : function, optional
        It is called with an ``EigenStep`` after each block of matvecs with A^H A; its values
        are singular values, and its residuals are predicted from those of A^H A. Returning True
        or raising StopIteration stops the run with the triplets found so far.
    checkpoint : path, optional
        As for :func:`matfree.eigsh`. If small singular values require more than one round, every
        round has a file of its own next to the first one.

    Returns
    -------
    SingularResult
        ``left`` (m, k), ``values`` (k,) float64 in descending order, ``right`` (n, k), and
        ``residuals`` (k,) relative to ||A||. Vectors are in the operator's library, data type and
        device.

    Raises
    ------
    ValueError
        k is not in [1, min(m, n)], another argument is out of range, max_matvecs does not
        suffice for k vectors and their residuals, ``start`` has the wrong number of rows, or the
        checkpoint belongs to another run.
    OperatorError
        A has no adjoint, or its adjoint contradicts its matvecs.
    NonFiniteError
        A matvec contains NaN or infinity.

    Warns
    -----
    ConvergenceWarning
        A singular triplet did not reach rtol within the budget, or within the rounding of the
        dtype.

    Cost
    ----
    2 matvecs per Lanczos vector, 2 k per round for values and residuals, and 1 for the scale of
    A, all counted in ``num_matvecs``. Memory: as for ``eigsh`` with vectors of length
    min(m, n), plus 4 k vectors.

    References
    ----------
    G. H. Golub, W. Kahan (1965), Calculating the singular values and pseudo-inverse of a matrix,
    doi:10.1137/0702016. On the loss of accuracy by squaring: M. E. Hochstenbach (2001), A
    Jacobi-Davidson type SVD method, doi:10.1137/S1064827500372973.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.zeros((50, 30))
    >>> A[range(4), range(4)] = 8.0, 3.0, 1e-3, 1e-10  # the square of 1e-10 is lost in A^H A
    >>> mf.svds(A, 4, rtol=1e-13, seed=0).values
    array([8.e+00, 3.e+00, 1.e-03, 1.e-10])
    """
    A = CountedOperator(A, square=False)
    operator = A.operator
    require_counts(A, k, block_size=block_size, num_vectors=num_vectors, max_matvecs=max_matvecs)
    tolerance = Tolerance.of(A, rtol)
    budget = max_matvecs or max(2000, 200 * k)
    block, to_multiply = _start_on_shorter_side(operator, start)
    width = min(block_size, *operator.shape) if block is None else block.shape[1]
    spent = 1 + (width if to_multiply else 0)
    least = spent + round_matvecs(k, k, width, operator.shape)
    require_budget(budget, least, f"one search for k={k} singular triplets")
    seed = Checkpoint(checkpoint, A, seed).seed  # the rounds open the files themselves
    scale = _scale(operator, seed)
    if to_multiply:
        block = (operator * (1 / scale)).matmat(block)
    search = SingularSearch(
        operator,
        scale=scale,
        k=k,
        tolerance=tolerance,
        budget=budget,
        spent=spent,
        seed=seed,
        options={
            "block_size": block_size,
            "num_vectors": num_vectors,
            "verify": verify,
            "progress": progress,
        },
        callback=callback,
        checkpoint=None if checkpoint is None else archive.file_path(checkpoint),
    )
    result = interruptible(lambda: search.complete(block), search.interrupted)
    warn_unconverged(result, "singular triplets", k, tolerance.rtol, str(A.space.dtype))
    return result


def _scale(operator: Operator, seed: int) -> float:
    """A power of 2 near ||A^H w|| / ||w|| for a random vector w.

    The squares of singular values near 1e30 or 1e-30 leave the range of single precision. Those
    of A divided by the scale do not, and division by a power of 2 is exact.
    """
    w = operator.space.probes(1, seed=seed, kind="gaussian", stream=probes.CHECK)
    adjoint = CountedOperator(operator.H, square=False)
    try:
        sizes = to_host(operator.domain.norms(adjoint(w))) / to_host(operator.space.norms(w))
    except NoAdjointError as cause:
        raise OperatorError(
            f"svds requires the adjoint of {operator!r}, which has none: give it rmatvec (A^H x). "
            "For a Hermitian operator rmatvec is matvec, and eigsh does not require it."
        ) from cause
    adjoint.require_finite(sizes)
    return float(2.0 ** round(math.log2(sizes[0]))) if sizes[0] > 0 else 1.0


def _start_on_shorter_side(
    operator: Operator, start: Array | SingularResult | None
) -> tuple[Array | None, bool]:
    """The start block for the smaller one of A^H A and A A^H.

    Right singular vectors have to be multiplied by A if A has fewer rows than columns: the
    second value says so.
    """
    if start is None:
        return None, False
    wide = operator.shape[0] < operator.shape[1]
    if isinstance(start, SingularResult):
        space = operator.space if wide else operator.domain
        return converted_block(space, start.left if wide else start.right, "start"), False
    return converted_block(operator.domain, start, "start"), wide
