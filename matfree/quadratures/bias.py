"""The quadrature bias of tr f(A): a bound on the error that is not due to sampling.

The bound is computed from the recurrence coefficients of all probes together, because an
eigenvalue beyond the nodes is excluded by all of them. It costs no matvec. The rule depends on
what is known about f; see ``matfree.quadratures.brackets`` and ``matfree.quadratures.variation``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import numpy as np

from matfree.arguments import elementwise_values
from matfree.errors import ConvergenceWarning, warn
from matfree.protocol import HostArray
from matfree.quadratures.brackets import (
    NAMED,
    Spectrum,
    absolute_power_width,
    bracket_width,
    resolvent_width,
    same_function,
)
from matfree.quadratures.jacobi import JacobiMatrices, unfinished
from matfree.quadratures.variation import general_error

_RESOLVENT_NODES = 4  # any f is a resolvent on fewer
_RESOLVENT_RANGE = 1e-2  # of the nodes, relative: any smooth f is a resolvent on a shorter one


def require_spectrum(spectrum: Spectrum | None) -> Spectrum:
    """The bounds of the spectrum as a pair; ValueError for anything else.

    Infinite bounds are as good as None.
    """
    try:
        low, high = (None, None) if spectrum is None else spectrum
        bounds = [None if x is None else float(x) for x in (low, high)]
    except (TypeError, ValueError) as cause:
        raise ValueError(
            f"spectrum must be a pair (a, b) of bounds of all eigenvalues, each a number or None: "
            f"got {spectrum!r}."
        ) from cause
    a, b = (-math.inf if bounds[0] is None else bounds[0]), math.inf
    b = b if bounds[1] is None else bounds[1]
    if not a <= b:
        raise ValueError(f"spectrum=(a, b) needs a <= b: got {spectrum!r}.")
    return (a if math.isfinite(a) else None, b if math.isfinite(b) else None)


def require_within(nodes: HostArray, spectrum: Spectrum, slack: float) -> None:
    """Raise ValueError if a Ritz value is outside the bounds by more than ``slack``."""
    low, high = spectrum
    for bound, node, side in ((low, nodes.min(), "below"), (high, nodes.max(), "above")):
        sign = 1 if side == "above" else -1
        if bound is not None and sign * (node - bound) > slack:
            raise ValueError(
                f"spectrum={spectrum!r} does not contain all eigenvalues: the Ritz value "
                f"{node:.6g} is {side} {bound:.6g}, and there is an eigenvalue {side} it; pass "
                "bounds that hold, or None for an end that is not known."
            )


class QuadratureSettings(NamedTuple):
    """What the bias depends on, in addition to f and the recurrences."""

    num_steps: int
    """The number of steps that was asked for."""
    rounding: float
    """The rounding error of a node, relative to the largest."""
    spectrum: Spectrum
    """Known bounds of the eigenvalues."""


def warn_unknown(method: str, advice: str) -> None:
    """Issue the warning that an estimate by quadrature has no interval."""
    warn(
        f"the quadrature error of {method} is unknown, so that there is no interval; {advice}.",
        ConvergenceWarning,
    )


@final
class QuadratureBias:
    """The rule for one function.

    Parameters
    ----------
    f : function of a float64 array, or its name
        "log", "inverse", "sqrt", "inverse sqrt" or "exp".
    absolute_power : float, optional
        p if f(x) = |x|^p.
    """

    def __init__(
        self,
        f: Callable[[HostArray], HostArray] | str,
        *,
        absolute_power: float | None = None,
    ) -> None:
        self.f, self.absolute_power = f, absolute_power

    @property
    def advice(self) -> str:
        """What makes the bias smaller, or known."""
        bounds = "spectrum=(a, b) with bounds of all eigenvalues (None for an unknown one)"
        if self.f in ("log", "inverse", "inverse sqrt"):
            bounds = "spectrum=(a, None) with a positive lower bound a of all eigenvalues"
        elif self.f == "exp":
            bounds = "spectrum=(None, b) with an upper bound b of all eigenvalues"
        return f"pass {bounds}, or raise num_steps"

    def __call__(
        self,
        coefficients: Sequence[HostArray],
        squares: Sequence[float],
        settings: QuadratureSettings,
    ) -> float:
        """The mean over the probes of the bounds on their errors; inf if it is unknown.

        Parameters
        ----------
        coefficients : sequence of (2, steps) float64
            Per probe, as for ``unfinished``. Files of version 0.1 have none.
        squares : sequence of float
            ||w||^2 per probe.
        settings : QuadratureSettings
        """
        if len(coefficients) < len(squares):
            return math.inf
        T = unfinished(coefficients, squares, settings.num_steps, settings.rounding)
        if not len(T.alphas):
            return 0.0
        with np.errstate(all="ignore"):  # what is not finite is unknown
            mean = self._mean_error(T, settings.spectrum)
        return mean * len(T.alphas) / len(squares) if math.isfinite(mean) else math.inf

    def _mean_error(self, T: JacobiMatrices, spectrum: Spectrum) -> float:
        if self.absolute_power is not None:
            return float(np.mean(absolute_power_width(T, self.absolute_power, spectrum)))
        if self.f == "inverse":
            return float(np.mean(resolvent_width(T, 0j, 1.0, spectrum)))
        signed = NAMED[self.f] if isinstance(self.f, str) else same_function(self.f)
        if signed is not None:
            return float(np.mean(bracket_width(T, signed, spectrum)))
        assert not isinstance(self.f, str)
        found = resolvent(self.f, T.gauss()[0].ravel())
        if found is not None:
            z, factor = found
            return float(np.mean(resolvent_width(T, z, factor, spectrum)))
        return general_error(T, self.f, spectrum)


def density_bias(
    f: Callable[[HostArray], HostArray],
    nodes: Sequence[HostArray],
    coefficients: Sequence[HostArray],
    mass: float,
    settings: QuadratureSettings,
) -> float:
    """The bias of a trace of f from the quadratures of a spectral density.

    Parameters
    ----------
    f : function of a float64 array
    nodes, coefficients : per probe
    mass : float
        The number of eigenvalues that the measure of each probe represents.
    settings : QuadratureSettings

    Warns
    -----
    ConvergenceWarning
        The bias is unknown.
    """
    rule = QuadratureBias(f)
    every = np.concatenate(nodes)
    require_within(every, settings.spectrum, settings.rounding * float(np.abs(every).max()))
    bias = rule(coefficients, [mass] * len(nodes), settings)
    if math.isinf(bias):
        stored = len(coefficients) == len(nodes)
        again = "compute the density again, because version 0.1 saved no recurrences"
        warn_unknown("tr f(A)", rule.advice if stored else again)
    return bias


def resolvent(
    f: Callable[[HostArray], HostArray], nodes: HostArray
) -> tuple[complex, float] | None:
    """(z, |c|) if f(x) = c / (x - z) at all nodes up to rounding; otherwise None."""
    low, high = float(nodes.min()), float(nodes.max())
    size = max(abs(low), abs(high))
    if len(nodes) < _RESOLVENT_NODES or high - low <= _RESOLVENT_RANGE * size:
        return None
    inverse = 1 / elementwise_values(f, nodes)
    i, j = int(np.argmin(nodes)), int(np.argmax(nodes))
    slope = (inverse[j] - inverse[i]) / (high - low)
    line = inverse[i] + slope * (nodes - low)
    noise = 64 * float(np.finfo(np.float64).eps) * float(np.abs(inverse).max())
    if not np.abs(inverse - line).max() <= noise or abs(slope) * (high - low) <= 1e6 * noise:
        return None
    z = complex(low - inverse[i] / slope)
    return (z.real if abs(z.imag) <= 64 * np.finfo(np.float64).eps * size else z), 1 / abs(slope)
