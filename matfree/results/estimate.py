"""An estimated number, or vector, with its standard error and confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from matfree import plotting
from matfree.arrays import is_complex
from matfree.protocol import Array
from matfree.results.intervals import MeanError, mean_error, require_level, student_quantile
from matfree.results.merging import (
    joined_ranges,
    pooled,
    require_agreement,
    require_same_setting,
    safe_unit,
)
from matfree.results.record import Record, memory_rows


@final
@dataclass(frozen=True, eq=False)
class Estimate(Record):
    """The result of a stochastic estimator: a value, its standard error, and how it was computed.

    ``float(estimate)`` is the value. If the value is an array (a diagonal), the standard error
    is an array as well, and the interval holds entry by entry.

    Examples
    --------
    >>> import matfree as mf, numpy as np
    >>> estimate = mf.trace(np.diag([1.0, 2.0, 3.0]) + 1, num_probes=40, seed=0)
    >>> low, high = estimate.interval()
    >>> low < 9 < high, round((high - low) / estimate.half_width(), 6)
    (True, 2.0)
    >>> estimate.plot(exact=9.0).get_ylabel()
    'trace'
    """

    value: Any
    """The estimate: a float (a complex number for a complex operator), or an (n,) array."""
    stderr: Any
    """The standard error of ``value``, real: 0 if the value is exact, inf after one probe."""
    method: str
    """The name of the estimator, or "exact"."""
    num_probes: int
    """The number of random probes; 0 if the value is exact."""
    num_matvecs: int
    """The number of matvecs, all included."""
    degrees_of_freedom: float
    """The degrees of freedom of Student's t distribution, from which the interval is computed;
    they follow from ``deviations`` if there are any, and are num_probes - 1 otherwise; inf if the
    value is exact."""
    converged: bool
    """Whether the tolerance was reached, or none was given; False if there is no interval, because
    the bias is unknown or there is only one probe, and if the bias exceeds |value|."""
    reason: str
    """Why the run stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    kind: str = "rademacher"
    """The distribution of the probes."""
    size: int = 0
    """n, the size of the operator."""
    samples: Array | None = None
    """One estimate per probe, (num_probes,) float64 or complex128, for a scalar value."""
    deviations: Array | None = None
    """Numbers whose mean square is the variance of one sample, for quadratic forms of a Hermitian
    operator: one per probe, or for random signs one fewer per run. See
    ``matfree.results.intervals``."""
    probe_ranges: tuple[tuple[int, int], ...] = ()
    """The numbers of the probes that were used, as ranges (first, one past the last)."""
    bias: float = 0.0
    """A bound on the error that is not a sampling error, such as the quadrature error of
    tr f(A), or inf if it is unknown. It is added to the half-width of the interval."""
    widening: float = 1.0
    """The factor of the sampling error in the half-width: 1.03 if a tolerance decided when sampling
    stopped, because such runs stop sooner if their standard error happens to be small."""
    mergeable: bool = False
    """Whether the probes are averaged independently, so that this run can be merged with runs
    over other probes."""
    limits: tuple[float, float] | None = None
    """Bounds that the value satisfies by definition, to which intervals are clipped: a fraction
    lies in (0, 1)."""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    """(matvecs, value, half-width of the 95 % interval) at each convergence check; for a
    diagonal the 2-norms of both."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What was chosen for a given memory budget: "basis" ("full", "half", "none"), "at_once"
    (number of probes), "predicted" and "budget" (peak memory in bytes, per process)."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n): the range of local entries if the value is a sharded array."""

    units: ClassVar[tuple[str, ...]] = ("value", "stderr", "bias", "samples", "deviations")
    by_row: ClassVar[dict[str, tuple[int, str]]] = {"value": (0, "rows"), "stderr": (0, "rows")}

    def half_width(self, level: float = 0.95) -> Any:
        """Half of the width of the interval: the quantile of Student's t distribution times the
        standard error and ``widening``, plus the bias.

        Parameters
        ----------
        level : float in (0, 1)
        """
        require_level(level)
        quantile = student_quantile(level, self.degrees_of_freedom)
        return self.widening * quantile * self.stderr + self.bias

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The confidence interval (low, high), from Student's t distribution.

        For a complex value it is the interval of the real part, ``self.real.interval(level)``;
        that of the imaginary part is ``self.imag.interval(level)``.

        Parameters
        ----------
        level : float in (0, 1)

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> low, high = mf.trace(np.diag([1.0, 2.0, 3.0]), num_probes=4, seed=0).interval()
        >>> low, high  # the trace of a diagonal matrix is exact with probes of random signs
        (6.0, 6.0)
        """
        if _is_complex(self.value):
            return self.real.interval(level)
        half, center = self.half_width(level), self.value
        if self.limits is None:
            return center - half, center + half
        # Clipping to values that are possible does not reduce the coverage.
        lowest, highest = self.limits
        return max(center - half, lowest), min(center + half, highest)

    @property
    def real(self) -> Estimate:
        """The estimate of the real part, with its own standard error where samples allow it."""
        return self._part("real")

    @property
    def imag(self) -> Estimate:
        """The estimate of the imaginary part.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag([1.0, 2.0]) + 1
        >>> resolvent = mf.trace_function(A, lambda x: 1 / (x - 1j), num_probes=8, seed=0)
        >>> low, high = resolvent.imag.interval()
        >>> bool(low < np.sum(1 / (np.linalg.eigvalsh(A) - 1j)).imag < high)
        True
        """
        return self._part("imag")

    def _part(self, part: Literal["real", "imag"]) -> Estimate:
        samples = None if self.samples is None else _part_of(self.samples, part)
        deviations = None if self.deviations is None else _part_of(self.deviations, part)
        # Of both parts together, which bounds that of each.
        error = MeanError(self.stderr, self.degrees_of_freedom)
        if self.mergeable and samples is not None and len(samples) > 1:
            error = mean_error(samples, deviations, kind=self.kind, size=self.size)
        return replace(
            self,
            value=_part_of(self.value, part),
            stderr=error.stderr,
            degrees_of_freedom=error.degrees_of_freedom,
            samples=samples,
            deviations=deviations,
            history=(),
        )

    def plot(self, ax: Any = None, *, exact: Any = None) -> Any:
        """Draw the samples of a trace, or the intervals of a diagonal, and return the Axes.

        See :func:`matfree.plotting.plot_trace` and :func:`matfree.plotting.plot_diagonal`.
        """
        draw = plotting.plot_diagonal if np.ndim(self.value) else plotting.plot_trace
        return draw(self, exact, ax=ax)

    def __float__(self) -> float:
        if np.ndim(self.value) > 0:
            raise TypeError("this estimate is an array; read its .value instead.")
        if isinstance(self.value, complex) and abs(self.value.imag) > 1e-8 * abs(self.value):
            raise TypeError(f"the value {self.value} is complex; read its .value instead.")
        return float(self.value.real)

    def merge(self, *others: Estimate) -> Estimate:
        """Merge runs over different probes of one problem into one estimate, exactly.

        Parameters
        ----------
        *others : Estimate
            Runs of the same method and seed on the same operator, over other probes
            (``first_probe``).

        Returns
        -------
        Estimate
            The result that one run over all the probes would have returned, up to rounding.

        Raises
        ------
        ValueError
            The runs differ in method or seed, share a probe, are of a method that combines its
            probes ("xtrace" and related methods), or are so far apart that they cannot be
            estimates of one operator: 10 standard errors, from 16 probes on.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag([1.0, 2.0, 3.0]) + 1
        >>> parts = [mf.trace(A, num_probes=5, first_probe=i, seed=0) for i in (0, 5)]
        >>> whole = mf.trace(A, num_probes=10, seed=0)
        >>> bool(np.isclose(parts[0].merge(parts[1]).stderr, whole.stderr))
        True
        """
        unit = safe_unit(self.value)
        if unit != 1:
            return self.times(1 / unit).merge(*(run.times(1 / unit) for run in others)).times(unit)
        runs = (self, *others)
        for name in ("method", "seed", "kind", "size"):
            require_same_setting(name, [getattr(run, name) for run in runs])
        if not all(run.mergeable for run in runs):
            raise ValueError(
                f"estimates by {self.method!r} cannot be merged, because their probes are not "
                "averaged independently; run it once with more probes."
            )
        ranges = joined_ranges([run.probe_ranges for run in runs])
        require_agreement(runs)
        count = sum(run.num_probes for run in runs)
        return replace(
            self,
            **pooled(runs, count),
            num_probes=count,
            num_matvecs=sum(run.num_matvecs for run in runs),
            converged=all(run.converged for run in runs),
            reason=f"{len(runs)} runs merged",
            probe_ranges=ranges,
            # Each run bounds the quadrature error of its own probes.
            bias=max(run.bias for run in runs),
            widening=max(run.widening for run in runs),
            history=(),
        )

    def __complex__(self) -> complex:
        return complex(self.value)

    def _rows(self) -> list[tuple[str, str]]:
        if hasattr(self.value, "shape") and self.value.shape:
            value, error = f"array of shape {tuple(self.value.shape)}", "one per entry"
        else:
            value, (low, high) = f"{self.value:.8g}", self.interval()
            error = f"{self.stderr:.2g}, 95 % interval [{low:.6g}, {high:.6g}]"
            if _is_complex(self.value):
                low, high = self.imag.interval()
                error += f" of the real part, [{low:.6g}, {high:.6g}] of the imaginary part"
        if self.bias == math.inf:
            error = f"{self.stderr:.2g}, interval unknown, because the quadrature error is"
        elif self.bias:
            error += f", including a quadrature error of at most {self.bias:.2g}"
        return [
            ("value", value),
            ("standard error", error),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} matvecs, {self.num_probes} probes"),
            ("converged", f"{'yes' if self.converged else 'NO'}: {self.reason}"),
            *memory_rows(self.memory),
            ("seed", str(self.seed)),
        ]


def _is_complex(value: Any) -> bool:
    """Whether a number, or the entries of an array, are of a complex type."""
    if not is_array_api_obj(value):
        return isinstance(value, complex)
    return is_complex(array_namespace(value), value.dtype)


def _part_of(value: Any, part: Literal["real", "imag"]) -> Any:
    """The real or imaginary part of a number or an array of any library."""
    if not is_array_api_obj(value):
        return getattr(value, part)
    xp = array_namespace(value)
    if is_complex(xp, value.dtype):
        return getattr(xp, part)(value)
    return value if part == "real" else xp.zeros_like(value)
