"""Functions of eigenvalues, and where they may be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, final

import numpy as np

from matfree.protocol import HostArray

Function: TypeAlias = Callable[[HostArray], HostArray]
FunctionName: TypeAlias = Literal["log", "inverse", "sqrt", "exp"]

_NAMED: dict[str, Function] = {
    "log": np.log,
    "inverse": lambda x: 1 / x,
    "sqrt": np.sqrt,
    "exp": np.exp,
}


@final
class Checked:
    """A function of Ritz values that refuses what is outside its domain.

    Parameters
    ----------
    f : function of a float64 array, or the name of one
    eps : float
        Of the vectors' data type: an eigenvalue below eps ||A|| has no sign.
    """

    def __init__(self, f: Function | FunctionName, eps: float) -> None:
        if not callable(f) and f not in _NAMED:
            known = ", ".join(map(repr, _NAMED))
            raise ValueError(f"f must be a function or one of {known}: got {f!r}.")
        self.name = "f" if callable(f) else f
        self.f = f if callable(f) else _NAMED[f]
        self.eps = eps
        self.largest_negative, self.smallest_positive = -math.inf, math.inf
        """Next to 0, over all Ritz values that were seen."""

    def values_at(self, points: HostArray) -> tuple[float, ...]:
        """f there, NaN where it is not defined: what tells two functions apart."""
        with np.errstate(all="ignore"):
            return tuple(np.asarray(self.f(points), dtype=np.float64).tolist())

    def __call__(self, nodes: HostArray, *, complete: bool = False) -> HostArray:
        """f of the nodes; ``complete`` where they are all the eigenvalues there are."""
        least, noise = float(nodes.min()), self.eps * float(np.abs(nodes).max())
        if self.name == "log" and least <= noise:  # what rounding leaves of 0 has no logarithm
            raise ValueError(self._refusal(nodes, "positive definite"))
        if self.name == "sqrt":
            if least < -32 * noise:
                raise ValueError(self._refusal(nodes, "positive semidefinite"))
            nodes = np.maximum(nodes, 0.0)
        if self.name == "inverse":
            self._require_invertible(nodes, noise, complete)
        with np.errstate(all="ignore"):
            values = np.asarray(self.f(nodes), dtype=np.float64)
        if not np.all(np.isfinite(values)):
            bad = float(nodes[~np.isfinite(values)][0])
            raise ValueError(
                f"f is not finite at the Ritz value {bad:.6g}; shift the operator, or choose an "
                "f that is defined on its spectrum."
            )
        return values

    def _require_invertible(self, nodes: HostArray, noise: float, complete: bool) -> None:
        """Refuse 0, and Ritz values on both sides of it.

        1 / x is unbounded between them, and no quadrature knows how near to 0 there is an
        eigenvalue. From all eigenvalues the sum is what it is.
        """
        nearest = float(nodes[np.argmin(np.abs(nodes))])
        if abs(nearest) <= noise:
            raise ValueError(
                f"inverse needs an invertible operator: it has the Ritz value {nearest:.6g} (least "
                f"Ritz value is {nodes.min():.6g}, largest {nodes.max():.6g}), which is 0 to "
                "rounding; shift it (A.shift(...)), or pass your own function."
            )
        self.largest_negative = max(self.largest_negative, *nodes[nodes < 0], -math.inf)
        self.smallest_positive = min(self.smallest_positive, *nodes[nodes > 0], math.inf)
        both = self.largest_negative > -math.inf and self.smallest_positive < math.inf
        if both and not complete:
            raise ValueError(
                f"inverse needs a definite operator: its least Ritz value is {nodes.min():.6g}, "
                f"and those next to 0 are {self.largest_negative:.6g} and "
                f"{self.smallest_positive:.6g}; no quadrature of 1/x is bounded across 0. Give a "
                "budget of n products (max_matvecs) for the exact answer, or pass a solver "
                "x -> A^-1 x to matfree.trace."
            )

    def _refusal(self, nodes: HostArray, need: str) -> str:
        least = float(nodes.min())
        shift = max(-2 * least, 1e-8 * float(np.abs(nodes).max()))
        return (
            f"{self.name} needs a {need} operator: its least Ritz value is {least:.6g}; shift it "
            f"(A.shift({shift:.2g})), or pass your own function."
        )
