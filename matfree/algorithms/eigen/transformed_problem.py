r"""Eigenvalues near a point, of smallest magnitude, and of generalized problems A u = lambda M u.

The operator (A - sigma M)^-1 M has the eigenvectors of the problem, and the eigenvalues

.. math:: \theta = \frac{1}{\lambda - \sigma},

of which the largest belong to the lambda nearest to sigma. It is self-adjoint with respect to the
inner product x^H M y, as is M^-1 A. A vector space with this inner product makes them operators
like any other, for the same search.

References
----------
T. Ericsson, A. Ruhe (1980), The spectral transformation Lanczos method for the numerical solution
of large sparse generalized symmetric eigenvalue problems, doi:10.1090/S0025-5718-1980-0583502-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, final

import numpy as np

from matfree import probes
from matfree.algorithms.krylov.recurrence import tridiagonalize
from matfree.algorithms.running.counted_operator import CountedOperator
from matfree.algorithms.solving.inverse import inverse
from matfree.arguments import order
from matfree.arrays import epsilon, real_part, rounding, to_host
from matfree.errors import OperatorError, SolveError
from matfree.operators import Operator, aslinearoperator
from matfree.protocol import Array, HostArray
from matfree.spaces import VectorSpace

AnyWhich: TypeAlias = Literal["LM", "LA", "SA", "BE", "SM"]
"""Which eigenvalues, those of smallest magnitude included."""

_NORM_STEPS = 10  # Lanczos steps for an estimate of ||A||

_MOST_ROUNDING = 10.0  # the largest residual of a solve, in units of sqrt(eps)

_MOST_WRONG = 0.1
"""The largest relative residual of a product with a given inverse, which may be inaccurate."""

_INNER_SHARE = 1e-2
"""The residuals of inner solves relative to the tolerance of eigenpairs: a solve with a residual e
contributes e |lambda - sigma| to the residual of the eigenpair, and noise to the search."""


@final
class WeightedSpace(VectorSpace):
    """A space with the inner product x^H M y of a positive definite operator M.

    Parameters
    ----------
    space : VectorSpace
    M : Operator
        Every inner product of blocks costs one matmat with M.
    """

    def __init__(self, space: VectorSpace, M: Operator) -> None:
        vars(self).update(vars(space))
        self.plain, self.M = space, M

    def all_reduce(self, partial: Array) -> Array:
        """The sum over all processes of the space without weights."""
        return self.plain.all_reduce(partial)

    def partial_gram(self, X: Array, Y: Array) -> Array:
        """The sums of X^H M Y over the local rows."""
        return self.plain.partial_gram(X, self.M.matmat(Y))

    def partial_dots(self, X: Array, Y: Array) -> Array:
        """The sums of x_j^H M y_j over the local rows."""
        return self.plain.partial_dots(X, self.M.matmat(Y))

    def norms(self, X: Array) -> Array:
        """The norms (x^H M x)^(1/2) of the columns, (k,).

        Raises
        ------
        OperatorError
            M is not positive definite.
        """
        MX = self.M.matmat(X)
        squares = real_part(self.xp, self.plain.dots(X, MX))
        sizes = self.plain.norms(X) * self.plain.norms(MX)
        least = to_host(self.xp.min(squares + rounding(self.xp, self.dtype) * sizes)[None])[0]
        if least < 0:
            raise OperatorError(
                f"M must be positive definite: x^H M x is {least:.3g} for a vector x; exchange A "
                "and M if A is, whose eigenvalues are the reciprocals."
            )
        return self.xp.sqrt(self.xp.where(squares > 0, squares, self.xp.zeros_like(squares)))


@final
class Product(Operator):
    """A product of operators that is self-adjoint in its space.

    Parameters
    ----------
    space : VectorSpace
    factors : sequence of Operator
        The first one is applied first.
    """

    def __init__(self, space: VectorSpace, factors: Sequence[Operator]) -> None:
        super().__init__(space)
        self.factors = factors

    def _apply(self, X: Array) -> Array:
        for factor in self.factors:
            X = factor.matmat(X)
        return X

    _apply_adjoint = _apply

    def __repr__(self) -> str:
        return " ".join(repr(factor) for factor in reversed(self.factors))


@final
class RoundedSolves(Operator):
    """The inverse of an operator, which accepts what rounding leaves of a residual.

    The residual of a solution x is at least about eps ||A|| ||x||, and contributes only eps ||A||
    to that of an eigenpair. Residuals of the pairs are computed from the original problem, so that
    no inaccuracy of a solve remains hidden.
    """

    def __init__(self, operator: Operator, rtol: float) -> None:
        super().__init__(operator.space)
        self.solves = inverse(operator, rtol=rtol, seed=0)
        self.most = max(_MOST_ROUNDING * epsilon(self.space.xp, self.dtype) ** 0.5, rtol)

    def _apply(self, X: Array) -> Array:
        try:
            return self.solves.matmat(X)
        except SolveError as failure:
            if not np.all(failure.solution.residuals <= self.most):
                raise
            return failure.solution.values

    def __repr__(self) -> str:
        return repr(self.solves)


@final
class TransformedProblem:
    """The operator whose extreme eigenvalues are wanted, and the way back to those of A.

    Parameters
    ----------
    A : CountedOperator
    which : {"LM", "LA", "SA", "BE", "SM"}
    sigma : float or None
    M, Minv, OPinv : operators, or None
    rtol : float
        The tolerance of eigenpairs.
    nudge : float
        What is added to the eigenvalues, so that none is 0.
    spent : int
        Matvecs of solves before.
    """

    def __init__(
        self,
        A: CountedOperator,
        *,
        which: AnyWhich,
        sigma: float | None,
        M: Any,
        Minv: Any,
        OPinv: Any,
        rtol: float,
        nudge: float = 0.0,
        spent: int = 0,
    ) -> None:
        self.A, self.given, self.spent = A, which, spent
        self.which: Literal["LM", "LA", "SA", "BE"] = "LM" if which == "SM" else which
        self.M = None if M is None else _square_like(A.operator, M, "M")
        # SciPy's "SM" with sigma is farthest from sigma, and "SM" without sigma nearest to 0.
        self.inverts = (sigma is not None) != (which == "SM")
        self.center = _require_number(sigma)
        self.sigma = self.center - nudge
        self.inner: RoundedSolves | None = None
        self.rtol = max(_INNER_SHARE * rtol, 10 * epsilon(A.space.xp, A.space.dtype))
        space = A.space if self.M is None else WeightedSpace(A.space, self.M)
        self.operator = CountedOperator(Product(space, self._factors(OPinv, Minv)))

    def _factors(self, OPinv: Any, Minv: Any) -> list[Operator]:
        A, M = self.A.operator, self.M
        shifted = A
        if self.sigma:
            shifted = A.shift(-self.sigma) if M is None else A - M * self.sigma
        weighted = [] if M is None else [M]
        if self.inverts:
            if OPinv is None:
                self.inner = RoundedSolves(shifted, self.rtol)
                return [*weighted, self.inner]
            return [*weighted, _inverse_of(shifted, OPinv, "OPinv", "A - sigma M")]
        if M is None:
            return [shifted]
        solves = RoundedSolves(M, self.rtol) if Minv is None else None
        return [shifted, solves or _inverse_of(M, Minv, "Minv", "M")]

    @property
    def num_matvecs(self) -> int:
        """The matvecs with A, those of inner solves included, or with ``OPinv``."""
        inner = self.operator.num_matvecs if self.inner is None else self.inner.solves.num_matvecs
        return self.spent + self.A.num_matvecs + inner

    def values(self, theta: HostArray) -> HostArray:
        """The eigenvalues of the problem for those of the transformed one."""
        if not self.inverts:
            return theta + self.sigma
        with np.errstate(divide="ignore"):
            return self.sigma + 1 / theta

    def order(self, values: HostArray) -> HostArray:
        """The indices of eigenvalues of the problem in the order that was asked for."""
        if self.inverts and self.which == "LM":
            return np.argsort(np.abs(values - self.center), kind="stable")
        theta = values - self.sigma
        if self.inverts:
            with np.errstate(divide="ignore"):
                theta = 1 / theta
        return order(theta, self.which, len(theta))


def estimated_norm(A: CountedOperator) -> float:
    """An estimate of ||A|| from a few Lanczos steps, from below."""
    start = A.space.probes(1, seed=0, kind="gaussian", stream=probes.CHECK)
    steps = min(_NORM_STEPS, A.space.size)
    T = tridiagonalize(A, start, steps, reorthogonalize="full", keep_basis=False)
    return float(np.abs(T.ritz(0).nodes).max())


def _require_number(sigma: Any) -> float:
    """sigma, or 0 for None; ValueError unless it is a finite real number."""
    if sigma is None:
        return 0.0
    if not isinstance(sigma, int | float | np.number) or np.iscomplexobj(sigma):
        raise ValueError(f"sigma must be a real number: got {sigma!r}.")
    if not np.isfinite(sigma):
        raise ValueError(f"sigma must be finite: got {sigma}; pass a number near the spectrum.")
    return float(sigma)


def _inverse_of(operator: Operator, given: Any, name: str, what: str) -> Operator:
    """The user's inverse, after a product with one vector was compared.

    Raises
    ------
    OperatorError
        It is not the inverse, not even roughly.
    """
    space, found = operator.space, _square_like(operator, given, name)
    w = space.probes(1, seed=0, kind="gaussian", stream=probes.CHECK)
    difference, size = to_host(
        space.norms(space.xp.concat((operator.matmat(found.matmat(w)) - w, w), axis=1))
    )
    if not difference <= _MOST_WRONG * size:
        raise OperatorError(
            f"{name} is not the inverse of {what}: ({what}) {name} w differs from w by "
            f"{difference / size:.1e} ||w|| for a random vector w; pass x -> ({what})^-1 x, for "
            "the sigma of the call."
        )
    return found


def _square_like(A: Operator, given: Any, name: str) -> Operator:
    """The argument as an operator on the same vectors as A."""
    operator = aslinearoperator(given)
    if tuple(operator.shape) != tuple(A.shape):
        raise OperatorError(
            f"{name} must have the shape of A, {tuple(A.shape)}: got {tuple(operator.shape)}."
        )
    return operator
