"""The Rayleigh-Ritz projection of a Hermitian operator onto the range of a block."""

from __future__ import annotations

import numpy as np

from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.arguments import Which, order
from matfree.arrays import to_host
from matfree.protocol import Array, HostArray


def rayleigh_ritz(
    A: CountedOperator, U: Array, AU: Array, which: Which = "SA"
) -> tuple[HostArray, HostArray, Array]:
    r"""Ritz pairs of A in the range of U, with the residuals of actual matvecs.

    With the eigendecomposition of the small matrix H = U^H A U = Y diag(theta) Y^H, the Ritz
    vectors are the columns of U Y, and their residuals are

    .. math:: \|A U y_j - \theta_j U y_j\|.

    Parameters
    ----------
    A : CountedOperator
    U : (rows, k), orthonormal columns
    AU : (rows, k)
        A @ U, which this function does not compute.
    which : {"LM", "LA", "SA", "BE"}
        The order of the Ritz pairs; ascending by default.

    Returns
    -------
    values : (k,) float64
    residuals : (k,) float64, the norms of the residuals
    vectors : (rows, k), orthonormal columns

    Raises
    ------
    NonFiniteError
        H contains NaN or infinity.
    """
    space = A.space
    H = to_host(space.gram(U, AU))
    A.require_finite(H)
    values, Y = np.linalg.eigh((H + H.conj().T) / 2)  # H is Hermitian up to rounding errors only
    best = order(values, which, len(values))
    values, Y = values[best], space.asarray(Y[:, best])
    U, AU = U @ Y, AU @ Y
    residuals = to_host(space.norms(AU - U * space.asarray(values)[None, :]))
    return values, residuals, U
