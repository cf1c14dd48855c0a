"""Functions of eigenvalues, with a check of their domains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, final

import numpy as np

from matfree.arguments import elementwise_values, spectral_values
from matfree.protocol import HostArray

Function: TypeAlias = Callable[[HostArray], HostArray]
FunctionName: TypeAlias = Literal["log", "inverse", "sqrt", "inverse sqrt", "exp"]

_NAMED_FUNCTIONS: dict[str, Function] = {
    "log": np.log,
    "inverse": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "inverse sqrt": lambda x: 1 / np.sqrt(x),
    "exp": np.exp,
}


_COMPARED = np.array([-1.5, -0.1, 0.3, 1.0, 7.0])
"""Points at which the function of a checkpoint is compared with that of the run."""

_EXACT_TRACE = (
    "Pass a budget of n matvecs (max_matvecs) for the exact answer, or pass a solver x -> A^-1 x "
    "to matfree.trace."
)
"""The cure for the inverse of an indefinite operator in a trace."""


@final
class PowerOfSingularValues:
    """|x|^p, with a bound on the effect of rounding errors of x.

    A singular operator has Ritz values of the size of rounding errors, whose small powers are far
    from 0: (1e-16)^0.1 is 0.025. They count as 0, and what they might be belongs to the bound.

    Parameters
    ----------
    exponent : float
    eps : float
        The machine precision of the vectors.
    size : int
        n; the error of a computed eigenvalue is taken as (32 + sqrt(n)) eps ||A||.
    """

    def __init__(self, exponent: float, eps: float, size: int) -> None:
        self.exponent, self.rounding = exponent, (32 + math.sqrt(size)) * eps

    def __call__(self, nodes: HostArray) -> HostArray:
        sizes = np.abs(nodes)
        return np.where(sizes > self.error_of(nodes), sizes, 0.0) ** self.exponent

    def uncertainty(self, nodes: HostArray) -> HostArray:
        """By how much |x|^p may differ from its value if x has a rounding error."""
        error, sizes, values = self.error_of(nodes), np.abs(nodes), self(nodes)
        above = (sizes + error) ** self.exponent - values
        return np.maximum(above, values - np.maximum(sizes - error, 0.0) ** self.exponent)

    def error_of(self, nodes: HostArray) -> float:
        """The rounding error of the nodes."""
        return self.rounding * float(np.abs(nodes).max(initial=0.0))


@final
class ScaledArgument:
    """x -> f(c x) for a function f, or its name, and a number c > 0."""

    def __init__(self, f: Function | FunctionName, c: float) -> None:
        self.f: Function = f if callable(f) else _NAMED_FUNCTIONS[f]
        self.c = c
        self.up_to_a_constant = np.log if self.f is np.log else None

    def __call__(self, x: HostArray) -> HostArray:
        if self.up_to_a_constant is not None:  # c x may leave the range of double precision
            return np.log(x) + math.log(self.c)
        return self.f(self.c * x)


@final
class SpectralFunction:
    """A function of Ritz values that raises an error outside its domain.

    Parameters
    ----------
    f : function of a float64 array with real or complex values, or the name of one
    eps : float
        The machine precision of the vectors. Eigenvalues within eps ||A|| of 0 count as 0,
        because rounding determines their sign.
    indefinite : str
        What to do instead of computing the inverse of an indefinite operator.
    """

    def __init__(
        self, f: Function | FunctionName, eps: float, *, indefinite: str = _EXACT_TRACE
    ) -> None:
        if not callable(f) and f not in _NAMED_FUNCTIONS:
            known = ", ".join(map(repr, _NAMED_FUNCTIONS))
            raise ValueError(f"f must be a function or one of {known}: got {f!r}.")
        self.name = "f" if callable(f) else f
        self.f = f if callable(f) else _NAMED_FUNCTIONS[f]
        self.eps, self.indefinite = eps, indefinite
        self.largest_negative, self.smallest_positive = -math.inf, math.inf
        """The Ritz values next to 0 on either side, over all calls."""

    def values_at_points(self) -> tuple[float, ...]:
        """f at a few points, NaN where it is undefined, to compare two functions."""
        try:
            values = elementwise_values(self.f, _COMPARED)
        except ValueError as refusal:
            if refusal.__cause__ is None:
                raise
            # f may be undefined at points that the spectrum does not contain.
            values = np.full(len(_COMPARED), math.nan)
        return tuple(values.view(np.float64).tolist())

    def __call__(
        self, nodes: HostArray, *, complete: bool = False, eps: float | None = None
    ) -> HostArray:
        """f of the nodes.

        Parameters
        ----------
        nodes : (k,) float64
        complete : bool
            Whether the nodes are all eigenvalues of the operator.
        eps : float, optional
            The relative precision of the nodes if it is not that of the vectors.

        Raises
        ------
        ValueError
            A node is outside the domain of f, or f is not finite there.
        """
        least = float(nodes.min())
        noise = (self.eps if eps is None else eps) * float(np.abs(nodes).max())
        if self.name in ("log", "inverse sqrt") and least <= noise:
            raise ValueError(self._refusal(nodes, noise, "positive definite"))
        if self.name == "sqrt":
            if least < -32 * noise:  # rounding may make a Ritz value near 0 slightly negative
                raise ValueError(self._refusal(nodes, noise, "positive semidefinite"))
            nodes = np.maximum(nodes, 0.0)
        if self.name == "inverse":
            self._require_invertible(nodes, noise, complete)
        return spectral_values(self.f, nodes)

    def _require_invertible(self, nodes: HostArray, noise: float, complete: bool) -> None:
        """Raise ValueError for a node 0, or for nodes on both sides of 0.

        In the latter case there may be eigenvalues arbitrarily close to 0 between the nodes,
        where 1 / x is unbounded, so that the error of a quadrature has no bound. The sum over
        all eigenvalues has no such error.
        """
        nearest = float(nodes[np.argmin(np.abs(nodes))])
        if abs(nearest) <= noise:
            raise ValueError(
                f"inverse needs an invertible operator: the Ritz value {nearest:.6g} is 0 to "
                f"rounding (least Ritz value is {nodes.min():.6g}, largest {nodes.max():.6g}); "
                f"shift it ({_shifted(nodes, noise)}), or pass your own function."
            )
        self.largest_negative = max(self.largest_negative, *nodes[nodes < 0], -math.inf)
        self.smallest_positive = min(self.smallest_positive, *nodes[nodes > 0], math.inf)
        both = self.largest_negative > -math.inf and self.smallest_positive < math.inf
        if both and not complete:
            raise ValueError(
                f"inverse needs a definite operator: its least Ritz value is {nodes.min():.6g}, "
                f"and those next to 0 are {self.largest_negative:.6g} and "
                f"{self.smallest_positive:.6g}; the error of an approximation of 1/x across 0 has "
                f"no bound. {self.indefinite}"
            )

    def _refusal(self, nodes: HostArray, noise: float, need: str) -> str:
        least = float(nodes.min())
        found = f"its least Ritz value is {least:.6g}"
        if least > 0:
            found += f", which is not distinguished from 0 by rounding of about {noise:.2g}"
        advice = f"shift it ({_shifted(nodes, noise)})"
        if self.eps > np.finfo(np.float64).eps:
            advice += ", pass it in double precision"
        return f"{self.name} needs a {need} operator: {found}; {advice}, or pass your own function."


def _shifted(nodes: HostArray, noise: float) -> str:
    """The Python that shifts the nodes away from 0, by far more than rounding."""
    shift = max(-2 * float(nodes.min()), 1e-8 * float(np.abs(nodes).max()), 4 * noise)
    return f"matfree.aslinearoperator(A).shift({shift:.2g})"
