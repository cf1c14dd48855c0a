r"""The Nystrom approximation of a positive semidefinite operator, in small matrices.

With Y = A W and M = W^H Y, it is A_hat = Y M^{-1} Y^H <= A. A shift nu I of the order of
rounding keeps M invertible.

References
----------
A. Gittens, M. W. Mahoney (2016), Revisiting the Nystrom method for improved large-scale machine
learning, JMLR 17. J. A. Tropp, A. Yurtsever, M. Udell, V. Cevher (2017), Fixed-rank approximation
of a positive-semidefinite matrix from streaming data, arXiv:1706.05736.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from matfree.algorithms.low_rank.range_sketch import RangeSketch
from matfree.arrays import to_host
from matfree.errors import OperatorError
from matfree.protocol import HostArray

_TRACES = (
    'xnystrace and xnysdiag need {}; use method="xtrace" or "xdiag", which take indefinite '
    "operators."
)


class NystromMatrices(NamedTuple):
    """The small matrices of XNysTrace, for a basis Q of r columns and k probes W."""

    R: HostArray
    """Q^H A W, (r, k)."""
    O: HostArray  # noqa: E741  # the paper's letter
    """Q^H W, (r, k)."""
    G: HostArray
    """W^H W, (k, k)."""

    def of_probes(self, index: HostArray) -> NystromMatrices:
        """The matrices of some of the probes, for the same basis."""
        return NystromMatrices(self.R[:, index], self.O[:, index], self.G[np.ix_(index, index)])

    def whitened(self) -> NystromMatrices:
        """The matrices of orthonormal vectors with the range of W.

        The approximation depends on this range only, and M is then as well-conditioned as A.
        """
        values, vectors = np.linalg.eigh((self.G + self.G.conj().T) / 2)
        keep = values > 1e-12 * np.max(values, initial=0.0)
        T = vectors[:, keep] / np.sqrt(values[keep])
        return NystromMatrices(self.R @ T, self.O @ T, np.eye(T.shape[1], dtype=T.dtype))


class Nystrom(NamedTuple):
    """The shifted Nystrom approximation, A + nu I ~ F F^H, in small matrices."""

    nu: float
    roots: HostArray
    """V D^{-1/2} for the eigenvalues D of M = V D V^H that exceed rounding, (k, r')."""
    inverse: HostArray
    """The pseudoinverse of M from the same eigenvalues, (k, k)."""
    Y: HostArray
    """Q^H (A + nu I) W, (r, k)."""
    full_rank: bool
    """Whether all eigenvalues of M exceed rounding."""
    missed: float
    """An estimate of tr(A - A_hat) if M does not have full rank; otherwise 0."""


def nystrom(small: NystromMatrices, size: int, eps: float, *, user: str = _TRACES) -> Nystrom:
    """Factor the core matrix M = W^H (A + nu I) W.

    Parameters
    ----------
    small : NystromMatrices
    size : int
        The dimension n.
    eps : float
        The machine precision of the vectors.
    user : str
        What needs a positive semidefinite operator, and what to use instead, for the error
        message with the smallest eigenvalue.

    Raises
    ------
    OperatorError
        M is not positive semidefinite up to rounding.
    """
    nu = eps * float(np.linalg.norm(small.R)) / math.sqrt(size)
    Y = small.R + nu * small.O
    M = small.O.conj().T @ small.R + nu * small.G
    values, vectors = np.linalg.eigh((M + M.conj().T) / 2)
    top = float(np.abs(values).max(initial=0.0))
    if values.size and values[0] < -max(1e-8, 1e3 * eps) * top:
        raise OperatorError(
            user.format(
                "a positive semidefinite operator: the smallest eigenvalue of W^H A W is "
                f"{values[0] / top:.1e} times its largest"
            )
        )
    keep = values > len(values) * eps * top
    roots = vectors[:, keep] / np.sqrt(values[keep])
    dropped = np.abs(values[~keep])
    # As in generalized cross-validation, the residual within the sample is divided by the square
    # of the fraction of dimensions that are left, to extrapolate to vectors outside the sample.
    missed = len(values) * float(dropped.sum()) / max(1, len(dropped)) ** 2
    rank, num_probes = small.R.shape
    full_rank = bool(keep.all()) and top > 0 and rank >= num_probes
    return Nystrom(nu, roots, roots @ roots.conj().T, Y, full_rank, missed)


def nystrom_eigenpairs(
    small: NystromMatrices, size: int, eps: float, *, user: str = _TRACES
) -> tuple[HostArray, HostArray]:
    """The eigenvalues of the approximation in descending order, and vectors in the basis Q.

    Parameters and errors are those of :func:`nystrom`.

    Returns
    -------
    values : (j,) float64, not negative
    vectors : (r, j), orthonormal columns
    """
    found = nystrom(small.whitened(), size, eps, user=user)
    vectors, roots, _ = np.linalg.svd(found.Y @ found.roots, full_matrices=False)
    return np.maximum(roots**2 - found.nu, 0.0), vectors


def nystrom_matrices(sketch: RangeSketch) -> NystromMatrices:
    """The matrices R, O and G of a sketch; the probes are drawn again, block by block."""
    O = [to_host(sketch.space.gram(sketch.Q, W)) for W in sketch.probe_blocks()]  # noqa: E741
    return NystromMatrices(sketch.R, np.hstack(O), sketch.gram_of_probes())
