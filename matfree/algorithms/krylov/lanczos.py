r"""``lanczos``: the Lanczos factorization of a Hermitian operator.

In exact arithmetic, the vectors v_1, v_2, ... that result from orthonormalizing v, A v, A^2 v, ...
satisfy the three-term recurrence

.. math:: \beta_j v_{j+1} = A v_j - \alpha_j v_j - \beta_{j-1} v_{j-1}.

With V = [v_1 ... v_m] and the tridiagonal matrix T with diagonal alpha and off-diagonal beta, this
is the factorization

.. math:: A V = V T + r e_m^T.

In floating-point arithmetic, the v_j lose orthogonality as soon as an eigenvalue converges. Two
passes of Gram-Schmidt against the whole basis restore it to machine precision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from matfree.algorithms.krylov.memory_plan import MemoryModel, StorageScheme, choose_storage
from matfree.algorithms.krylov.recurrence import (
    Reorthogonalize,
    require_reorthogonalize,
    tridiagonalize,
)
from matfree.algorithms.running.counted_operator import CountedOperator, converted_block
from matfree.algorithms.running.magnitude import equivariant
from matfree.arguments import slices
from matfree.protocol import Array
from matfree.results import Tridiagonal
from matfree.spaces import VectorSpace


@equivariant()
def lanczos(
    A: Any,
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: Reorthogonalize = "full",
    keep_basis: bool = True,
    memory: int | None = None,
) -> Tridiagonal:
    r"""The Lanczos factorization of a Hermitian operator, for one or more start vectors.

    For each start vector, with the orthonormal Lanczos vectors in the rows of V, a tridiagonal
    matrix T, and the last unit vector e,

    .. math:: A V^T = V^T T + r e^T.

    The runs of the start vectors are independent. They share matmats, but the results are those
    of separate runs.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
        (n, n), real or complex.
    start : (n,) or (n, k) array of the operator's library
        The start vectors, not zero. They are normalized here.
    num_steps : int
        The number of steps m, in [1, n]. A run ends earlier if its Krylov space is invariant;
        the factorization is then exact.
    reorthogonalize : {"full", "half", "none"}
        "full": two passes of Gram-Schmidt against the whole basis. "half": the same against a
        basis in scaled 16-bit numbers, so that V^H V - I is of the order of 1e-4, and the error
        of T of the order of its square (see ``node_errors`` of the result). "none": the bare
        recurrence, which stores two blocks only and produces copies of converged eigenvalues.
    keep_basis : bool
        Whether the result contains V. A basis in 16 bits is never returned, and without
        reorthogonalization V is not stored unless it is returned. :func:`matfree.ritz_vectors`
        does not require it.
    memory : int, optional
        A budget of memory in bytes, per process, in addition to that of the operator. The
        first scheme that fits is used: the requested one; fewer start vectors at a time; V not
        returned; a basis in 16 bits, if the library has them; no basis. ``memory`` of the result
        describes the scheme.

    Returns
    -------
    Tridiagonal
        The entries of T are float64. V is in the operator's library, data type and device.

    Raises
    ------
    ValueError
        num_steps is not in [1, n], a start vector is zero or has the wrong length, or
        another argument is invalid.
    NotHermitianError
        The matvecs of the run contradict A = A^H.
    NonFiniteError
        A matvec contains NaN or infinity.
    MemoryError
        ``memory`` is too small for one start vector without a basis. The message contains the
        least number of bytes that is sufficient.

    Cost
    ----
    num_steps * k matvecs. Memory: k (num_steps + 7) vectors with a basis and 7 k without,
    including the start block. "full" costs 4 num_steps^2 n k additional operations. "half"
    stores a quarter of a basis in double precision, or half of one in single precision, and
    takes about twice the time of "full" on a CPU (n = 30,000, 24 steps).

    References
    ----------
    C. Lanczos (1950), An iteration method for the solution of the eigenvalue problem,
    doi:10.6028/jres.045.026. C. C. Paige (1972), Computational variants of the Lanczos method for
    the eigenproblem, doi:10.1093/imamat/10.3.373. Two passes suffice: L. Giraud, J. Langou, M.
    Rozloznik (2005), The loss of orthogonality in the Gram-Schmidt orthogonalization process,
    doi:10.1016/j.camwa.2005.08.009.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> A = np.diag([1.0, 2.0, 5.0, 10.0, 10.0, 10.0])
    >>> T = mf.lanczos(A, np.ones(6), num_steps=6)
    >>> len(T.alphas[0]), np.linalg.eigvalsh(T.dense()).round(12)  # 4 distinct eigenvalues
    (4, array([ 1.,  2.,  5., 10.]))
    """
    A = CountedOperator(A)
    V = start_block(A.space, start)
    if not 1 <= num_steps <= A.space.size:
        raise ValueError(
            f"num_steps must be in [1, n]: got {num_steps} for an operator of size "
            f"{A.space.size}; pass num_steps={A.space.size} or fewer."
        )
    require_reorthogonalize(reorthogonalize)
    k = V.shape[1]
    model = MemoryModel(
        A.space, num_steps, num_vectors=2 * k, num_bases=k
    )  # 2 k: the caller's block too
    storage = choose_storage(model, StorageScheme(reorthogonalize, k, keep_basis), memory)
    runs = [
        tridiagonalize(
            A,
            V[:, part],
            num_steps,
            reorthogonalize=storage.reorthogonalize,
            keep_basis=storage.keep_basis,
        )
        for part in slices(k, storage.at_once)
    ]
    return replace(_merge_runs(runs), memory=storage.memory)


def _merge_runs(runs: list[Tridiagonal]) -> Tridiagonal:
    """Merge the factorizations of consecutive groups of start vectors."""
    return replace(
        runs[0],
        alphas=tuple(alpha for run in runs for alpha in run.alphas),
        betas=tuple(beta for run in runs for beta in run.betas),
        residual_norms=tuple(norm for run in runs for norm in run.residual_norms),
        start_norms=tuple(norm for run in runs for norm in run.start_norms),
        bases=tuple(basis for run in runs for basis in run.bases),
        num_matvecs=sum(run.num_matvecs for run in runs),
        node_errors=tuple(error for run in runs for error in run.node_errors),
    )


def start_block(space: VectorSpace, start: Array, name: str = "start") -> Array:
    """The start vectors as a block (rows, k) of the operator's space; ``name`` is the argument's.

    Raises
    ------
    ValueError
        The shape is neither (rows,) nor (rows, k).
    """
    if isinstance(start, list | tuple):
        start = space.xp.asarray(start, device=space.device)
    ndim, rows = getattr(start, "ndim", None), len(space.rows)
    if ndim not in (1, 2) or start.shape[0] != rows:
        shape = getattr(start, "shape", type(start).__name__)
        raise ValueError(
            f"{name} must have shape ({rows},) or ({rows}, k): got {shape}; pass vectors of the "
            "length of the operator's, one per column."
        )
    block = start[:, None] if ndim == 1 else start
    return converted_block(space, block, name)
