r"""The Lanczos process: a Hermitian operator seen from a vector, as a tridiagonal matrix.

In exact arithmetic the vectors v_1, v_2, ... obtained by orthonormalising v, A v, A^2 v,
... satisfy a recurrence of three terms,

    beta_j v_{j+1} = A v_j - alpha_j v_j - beta_{j-1} v_{j-1},

and with V = [v_1 ... v_m] and T = tridiag(beta, alpha, beta) this says A V = V T + r e_m^T.
In floating point the v_j lose orthogonality as soon as an eigenvalue converges; two
passes of Gram-Schmidt against the whole basis restore it to the last digit.
"""

from __future__ import annotations

from typing import Any

from matfree.algorithms.products import Products, adopted
from matfree.algorithms.recurrence import Reorthogonalize, tridiagonalize
from matfree.protocol import Array
from matfree.results import Tridiagonal
from matfree.spaces import RowSpace


def lanczos(
    A: Any,
    start: Array,
    num_steps: int,
    *,
    reorthogonalize: Reorthogonalize = "full",
    keep_basis: bool = True,
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
    reorthogonalize : {"full", "none"}
        Two passes of Gram-Schmidt against the whole basis, or the bare recurrence, which
        keeps two blocks only and repeats converged eigenvalues.
    keep_basis : bool
        Whether the result holds V. Without reorthogonalisation it is not even stored.

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

    Cost
    ----
    num_steps * k matvecs. Memory k (num_steps + 7) vectors with the basis, 7 k without, the
    start block among them; "full" adds 4 num_steps^2 n k multiplications.

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
    product = Products(A)
    V = _start_block(product.space, start)
    if not 1 <= num_steps <= product.space.size:
        raise ValueError(
            f"num_steps must be in [1, n]: got {num_steps} for an operator of size "
            f"{product.space.size}; pass num_steps={product.space.size} or fewer."
        )
    if reorthogonalize not in ("full", "none"):
        raise ValueError(f'reorthogonalize must be "full" or "none": got {reorthogonalize!r}.')
    return tridiagonalize(
        product, V, num_steps, reorthogonalize=reorthogonalize, keep_basis=keep_basis
    )


def _start_block(space: RowSpace, start: Array) -> Array:
    """The start vectors as a block of the operator's own space."""
    ndim, rows = getattr(start, "ndim", None), len(space.rows)
    if ndim not in (1, 2) or start.shape[0] != rows:
        shape = getattr(start, "shape", type(start).__name__)
        raise ValueError(f"start must have shape ({rows},) or ({rows}, k): got {shape}.")
    block = start[:, None] if ndim == 1 else start
    return adopted(space, block, "start")
