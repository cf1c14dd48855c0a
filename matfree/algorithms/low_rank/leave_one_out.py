r"""The error of a low-rank approximation, estimated from its own sketch by leave-one-out.

Let A_j be the approximation without the probe w_j. It does not depend on w_j, so that the vectors

.. math:: g_j = (A - \hat A_j) w_j, \qquad E \|g_j\|^2 = E \|A - \hat A_j\|_F^2,

sample the error of an approximation with one probe less. They follow from the small matrices of
the sketch, without further matvecs.

References
----------
E. N. Epperly, J. A. Tropp (2024), Efficient error and variance estimation for randomized matrix
computations, doi:10.1137/23M1558537, arXiv:2207.06342.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from matfree.algorithms.low_rank.nystrom import Nystrom
from matfree.protocol import HostArray


class Errors(NamedTuple):
    """Estimated norms of the error A - A_hat."""

    frobenius: float
    spectral: float

    def with_tail(self, tail: HostArray) -> Errors:
        """Upper bounds after the truncation of singular values, (j,) in descending order."""
        spectral = self.spectral + float(tail[0]) if len(tail) else self.spectral
        return Errors(self.frobenius + float(np.linalg.norm(tail)), spectral)

    def at_least(self, floor: float) -> Errors:
        """The errors, of which rounding hides what is smaller than ``floor``."""
        return Errors(max(self.frobenius, floor), max(self.spectral, floor))


def nystrom_errors(ny: Nystrom, size: int) -> Errors:
    """The errors of the Nystrom approximation: g_j = Y M^-1 e_j / (M^-1)_jj.

    Parameters
    ----------
    ny : Nystrom
    size : int
        The dimension n.
    """
    floor = max(ny.nu * math.sqrt(size), ny.missed)
    weights = np.diag(ny.inverse).real
    if not ny.full_rank or not weights.size:  # the range of A is known up to rounding
        return Errors(floor, floor)
    return _errors((ny.Y @ ny.inverse) / weights).at_least(floor)


def projection_errors(R: HostArray, floor: float) -> Errors:
    """The errors of Q Q^H A for the sketch A W = Q R: the parts of y_j outside the others' span.

    Parameters
    ----------
    R : (r, k)
    floor : float
        The size of rounding errors.
    """
    if R.shape[0] < R.shape[1] or not R.size:
        return Errors(floor, floor)
    inverse = np.linalg.inv(R).conj().T
    return _errors(inverse / np.sum(np.abs(inverse) ** 2, axis=0)).at_least(floor)


def _errors(G: HostArray) -> Errors:
    """Norms of an error E from the vectors g_j ~ E w_j, the columns of G, for Gaussian w_j.

    For an error of rank one, ||G||_2^2 = ||E||_2^2 sum_j |w_j|^2. For an error with many equal
    singular values, ||G||_2^2 is about the mean of ||g_j||^2, which is subtracted. Twice the
    result covers the fluctuations of ||E||_2^2 and the loss of the probe; it is too large rather
    than too small.
    """
    squares = np.sum(np.abs(G) ** 2, axis=0)
    mean, count = float(squares.mean()), len(squares)
    if count == 1:
        return Errors(math.sqrt(mean), math.sqrt(mean))
    largest = float(np.linalg.norm(G, 2)) ** 2
    spectral = 2 * max(0.0, largest - mean) / (count - 1)
    return Errors(math.sqrt(mean), math.sqrt(min(mean, spectral)))
