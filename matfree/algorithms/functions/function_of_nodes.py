"""The values f(t_i x) at Ritz values x for the numbers t_i of one call."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from matfree.algorithms.spectra.spectral_functions import (
    Function,
    FunctionName,
    SpectralFunction,
)
from matfree.arguments import elementwise_values
from matfree.protocol import HostArray

_SOLVE = (
    "Use matfree.solve for a linear system; or pass your own function, such as lambda x: 1 / x, "
    "whose error is then only estimated."
)

_REAL_ONLY = ("log", "sqrt", "inverse sqrt")  # names whose domain check needs real numbers


@final
class FunctionOfNodes:
    """x -> (f(t_1 x), ..., f(t_T x)), with the domain checks of named functions.

    Parameters
    ----------
    f : function, or the name of one
    t : (T,) float64 or complex128
    eps : float
        The machine precision of the vectors.

    Raises
    ------
    ValueError
        f is no known name, or t is complex for a function that is defined for real arguments.
    """

    def __init__(self, f: Function | FunctionName, t: HostArray, eps: float) -> None:
        self.t, self.eps, self.is_named = t, eps, isinstance(f, str)
        self.functions = [SpectralFunction(f, eps, indefinite=_SOLVE) for _ in t]
        if np.iscomplexobj(t) and f in _REAL_ONLY:
            raise ValueError(
                f"t must be real for f={f!r}, because its domain is real: got {t}; pass your own "
                "function for complex arguments."
            )

    def __call__(self, nodes: HostArray, *, complete: bool = False) -> HostArray:
        """The values, (T, nodes).

        Parameters
        ----------
        nodes : (j,) float64
        complete : bool
            Whether the nodes are all eigenvalues in the Krylov space.
        """
        if not np.iscomplexobj(self.t):
            rows = [
                f(t * nodes, complete=complete) for f, t in zip(self.functions, self.t, strict=True)
            ]
        else:
            rows = [self._complex_values(t, nodes) for t in self.t]
        return np.stack(rows)

    def _complex_values(self, t: complex, nodes: HostArray) -> HostArray:
        values = elementwise_values(self.functions[0].f, t * nodes)
        if not np.all(np.isfinite(values)):
            bad = nodes[~np.isfinite(values)][0]
            raise ValueError(
                f"f is not finite at {t:.6g} times the Ritz value {bad:.6g}; choose t and f so "
                "that f is finite on the spectrum of t A."
            )
        return values


def as_times(t: Any) -> HostArray:
    """The argument t as an array, () or (T,), float64 or complex128.

    Raises
    ------
    ValueError
        It is neither a finite number nor a list of finite numbers.
    """
    try:
        found = np.asarray(t)
        kind = np.complex128 if np.iscomplexobj(found) else np.float64
        found = found.astype(kind)
    except (TypeError, ValueError) as cause:
        raise ValueError(f"t must be a number or a list of numbers: got {t!r}.") from cause
    if found.ndim > 1 or not found.size or not np.all(np.isfinite(found)):
        raise ValueError(
            f"t must be a finite number, or a list of one or more finite numbers: got {t!r}; pass "
            "t=numpy.linspace(start, stop, num) for equidistant ones."
        )
    return found
