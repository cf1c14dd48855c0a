r"""``spectral_norm`` and ``condition_number``: the extreme singular values of an operator.

For every unit vector v,

.. math:: \sigma_{\min} \le \|A v\| \le \sigma_{\max},

so that one side of each bound is certain. The other side relies on the search for eigenvalues,
whose residuals bound the distance to an eigenvalue, and on its verification by random vectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from matfree.algorithms.eigen.eigsh import eigsh
from matfree.algorithms.eigen.svds import svds
from matfree.algorithms.running.magnitude import RangeChecked, equivariant
from matfree.algorithms.solving.solver import has_adjoint
from matfree.arrays import rounding
from matfree.errors import NotHermitianError
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Seed
from matfree.results import EigenResult, SingularResult
from matfree.results.solving.bounded_number import BoundedNumber


class Extreme(NamedTuple):
    """An extreme singular value, with its largest error if the search missed nothing."""

    value: float
    error: float
    found: EigenResult | SingularResult

    @property
    def converged(self) -> bool:
        """Whether the search converged and was verified."""
        return bool(self.found.verified and self.found.converged.all())


@equivariant()
def spectral_norm(
    A: Any, *, rtol: float | None = None, max_matvecs: int | None = None, seed: Seed = None
) -> BoundedNumber:
    r"""The spectral norm of an operator, its largest singular value.

    .. math:: \|A\|_2 = \max_{\|x\| = 1} \|A x\|

    Parameters
    ----------
    A : (m, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex. One that is not Hermitian needs its adjoint.
    rtol : float, optional
        The bound on the residual of the singular vector relative to ||A||, as for
        :func:`matfree.eigsh`. The error of the norm is of the order of its square.
    max_matvecs : int, optional
        The largest number of matvecs with A and A^H of the search.
    seed : int, None or numpy.random.Generator

    Returns
    -------
    BoundedNumber
        ``value`` and the lower bound are u^H A v for unit vectors u and v, so that the lower bound
        is certain. The upper bound, larger by the residual, is estimated.

    Raises
    ------
    NotHermitianError
        A is square, neither Hermitian nor with an adjoint.
    ValueError, NonFiniteError, OperatorError
        As for :func:`matfree.svds`.

    Warns
    -----
    ConvergenceWarning
        The residual did not reach rtol.

    Cost
    ----
    As for :func:`matfree.eigsh` with k = 1, or :func:`matfree.svds` if A is not Hermitian.

    References
    ----------
    As for :func:`matfree.eigsh`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> round(mf.spectral_norm(np.array([[3.0, 4.0], [0.0, 0.0]]), seed=0).value, 9)
    5.0
    """
    operator = aslinearoperator(A)
    largest, lost, _ = _largest(operator, rtol, max_matvecs, seed)
    return BoundedNumber(
        value=largest.value,
        low=largest.value * (1 - rounding(operator.space.xp, operator.dtype)),
        high=largest.value + largest.error,
        low_is_certain=True,
        high_is_certain=False,
        converged=largest.converged,
        method=largest.found.method,
        num_matvecs=largest.found.num_matvecs + lost,
        reason=largest.found.reason,
        seed=largest.found.seed,
    )


@equivariant(degree=0)
def condition_number(
    A: Any, *, rtol: float | None = None, max_matvecs: int | None = None, seed: Seed = None
) -> BoundedNumber:
    r"""The condition number of an operator in the spectral norm.

    .. math:: \kappa(A) = \sigma_{\max} / \sigma_{\min}

    Parameters
    ----------
    A : (m, n) operator, or anything ``aslinearoperator`` accepts
        Real or complex. One that is not Hermitian needs its adjoint, and the smallest eigenvalue of
        the smaller of A^H A and A A^H, whose condition number is the square, is computed.
    rtol : float, optional
        The bound on the residuals of singular vectors relative to ||A||; 1e-8, or 100 eps of the
        data type if that is larger. Condition numbers above 1 / rtol have no finite upper bound.
    max_matvecs : int, optional
        The largest number of matvecs of the search for the largest singular value, and of products
        with the inverse in that for the smallest one.
    seed : int, None or numpy.random.Generator

    Returns
    -------
    BoundedNumber
        The lower bound is certain, and the upper bound estimated.

    Raises
    ------
    SolveError
        A system with A, or with A^H A, could not be solved.
    NotHermitianError, ValueError, NonFiniteError, OperatorError
        As for :func:`matfree.spectral_norm`.

    Warns
    -----
    ConvergenceWarning
        A residual did not reach rtol.

    Cost
    ----
    As for :func:`matfree.eigsh` with k = 1, with "LM" and with "SM", which solves systems.

    References
    ----------
    As for :func:`matfree.eigsh`.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> round(mf.condition_number(np.diag([1.0, -4.0, 2.0, 0.5]), seed=0).value, 6)
    8.0
    """
    operator = aslinearoperator(A)
    slack = rounding(operator.space.xp, operator.dtype)
    if rtol is None:
        rtol = max(1e-8, 4 * slack)
    largest, lost, is_hermitian = _largest(operator, rtol, max_matvecs, seed)
    smallest = _smallest(operator, is_hermitian, rtol, max_matvecs, largest.found.seed)
    # ||A v|| is an upper bound of the smallest singular value for every unit vector v.
    most, least = smallest.value + smallest.error, smallest.value - smallest.error
    noise = slack * largest.value
    return BoundedNumber(
        value=largest.value / smallest.value if smallest.value > noise else np.inf,
        low=largest.value * (1 - slack) / (most + noise) if most + noise > 0 else np.inf,
        high=(largest.value + largest.error) / (least - noise) if least > noise else np.inf,
        low_is_certain=True,
        high_is_certain=False,
        converged=largest.converged and smallest.converged,
        method=f"{largest.found.method}; {smallest.found.method}",
        num_matvecs=largest.found.num_matvecs + smallest.found.num_matvecs + lost,
        reason=smallest.found.reason,
        seed=largest.found.seed,
    )


def _largest(
    operator: Operator, rtol: float | None, max_matvecs: int | None, seed: Seed
) -> tuple[Extreme, int, bool]:
    """The largest singular value, the matvecs of a search before, and whether A is Hermitian."""
    lost = 0
    m, n = operator.shape
    if m == n:
        try:
            found = eigsh(operator, 1, rtol=rtol, max_matvecs=max_matvecs, seed=seed)
            return _extreme(found), 0, True
        except NotHermitianError as refusal:
            if not has_adjoint(operator):
                raise
            lost = refusal.num_matvecs
    triplets = svds(operator, 1, rtol=rtol, max_matvecs=max_matvecs, seed=seed)
    return _extreme(triplets), lost, False


def _smallest(
    operator: Operator, is_hermitian: bool, rtol: float, max_matvecs: int | None, seed: int
) -> Extreme:
    """The smallest singular value."""
    options: dict[str, Any] = {"which": "SM", "max_matvecs": max_matvecs, "seed": seed}
    if is_hermitian:
        return _extreme(eigsh(operator, 1, rtol=rtol, **options))
    m, n = operator.shape
    operator = RangeChecked(operator)
    square = operator.H @ operator if m >= n else operator @ operator.H
    found = _extreme(eigsh(square, 1, rtol=max(rtol**2, 1e-14), **options))
    high = np.sqrt(max(found.value + found.error, 0.0))
    value = np.sqrt(found.value)
    # Every product with the square is one with A and one with A^H.
    pairs = replace(found.found, num_matvecs=2 * found.found.num_matvecs)
    return Extreme(float(value), float(high - value), pairs)


def _extreme(found: EigenResult | SingularResult) -> Extreme:
    value = abs(float(found.values[0]))
    return Extreme(value, float(found.residuals[0]) * found.norm, found)
