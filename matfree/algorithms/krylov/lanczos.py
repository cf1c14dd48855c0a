r"""The Lanczos process: a Hermitian operator seen from a vector, as a tridiagonal matrix.

In exact arithmetic the vectors v_1, v_2, ... obtained by orthonormalising v, A v, A^2 v,
... satisfy a recurrence of three terms,

    beta_j v_{j+1} = A v_j - alpha_j v_j - beta_{j-1} v_{j-1},

and with V = [v_1 ... v_m] and T = tridiag(beta, alpha, beta) this says A V = V T + r e_m^T.
In floating point the v_j lose orthogonality as soon as an eigenvalue converges; two
passes of Gram-Schmidt against the whole basis restore it to the last digit.
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
from matfree.algorithms.running.counted_operator import CountedOperator, adopted
from matfree.arguments import slices
from matfree.protocol import Array
from matfree.results import Tridiagonal
from matfree.spaces import VectorSpace


def lanczos(
    A: Any,
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: Reorthogonalize = "full",
    keep_basis: bool = True,
    memory: int | None = None,
) -> Tridiagonal:
    r"""The Lanczos factorization of a Hermitian operator, for one or many start vectors.

    A V^T = V^T T + r e_m^T for each start vector, with the rows of V orthonormal. Start
    vectors are independent runs that share their products: the numbers are those of
    separate runs.

    Parameters
    ----------
    A : Hermitian operator, or anything ``aslinearoperator`` accepts
    start : (n,) or (n, k) array of the operator's library
        Start vectors, not zero; they are normalised here.
    num_steps : int
        m, in [1, n]. Fewer are made where the Krylov space ends earlier: such a breakdown
        is a success, because the factorization is then exact.
    reorthogonalize : {"full", "half", "none"}
        Two passes of Gram-Schmidt against the whole basis; the same against the basis in
        scaled 16-bit numbers, which leaves V^H V - I of the order of 1e-4 and T off by its
        square (``node_errors`` of the result); or the bare recurrence, which keeps two blocks
        only and repeats converged eigenvalues.
    keep_basis : bool
        Whether the result holds V, where it is not in 16 bits. Without reorthogonalisation
        it is not even stored. ``ritz_vectors`` makes do without.
    memory : int, optional
        Bytes that may be taken, per process, beside what the operator needs itself. The first
        that fits is taken: as asked for; fewer start vectors at once; V not in the result;
        the basis in 16 bits, where the library has them; no basis. ``memory`` of the result
        tells which.

    Returns
    -------
    Tridiagonal

    Raises
    ------
    ValueError
        num_steps out of range, or a start vector of the wrong shape or zero.
    NotHermitianError
        The products made on the way contradict A = A^H.
    NonFiniteError
        A product holds NaN or infinity.
    MemoryError
        ``memory`` is too little for one start vector without a basis, and the text says how
        much would be enough.

    Cost
    ----
    num_steps * k matvecs. Memory k (num_steps + 7) vectors with the basis, 7 k without, the
    start block among them; "full" adds 4 num_steps^2 n k multiplications. "half" takes a
    quarter of the basis in double precision, half of it in single, and about twice the time
    of "full" on a processor (n = 30,000, 24 steps).

    References
    ----------
    C. Lanczos (1950), doi:10.6028/jres.045.026. C. C. Paige (1972), Computational variants
    of the Lanczos method, doi:10.1093/imamat/10.3.373. Two passes are enough: L. Giraud, J.
    Langou, M. Rozloznik (2005), doi:10.1016/j.camwa.2005.08.009.

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
    need = MemoryModel(A.space, num_steps, num_vectors=2 * k, num_bases=k)  # the caller's block too
    storage = choose_storage(need, StorageScheme(reorthogonalize, k, keep_basis), memory)
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
    """The runs of consecutive start vectors as one."""
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


def start_block(space: VectorSpace, start: Array) -> Array:
    """The start vectors as a block of the operator's own space."""
    ndim, rows = getattr(start, "ndim", None), len(space.rows)
    if ndim not in (1, 2) or start.shape[0] != rows:
        shape = getattr(start, "shape", type(start).__name__)
        raise ValueError(f"start must have shape ({rows},) or ({rows}, k): got {shape}.")
    block = start[:, None] if ndim == 1 else start
    return adopted(space, block, "start")
