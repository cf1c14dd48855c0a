"""An estimated number, or vector, with its standard error and confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import numpy as np

from matfree import plotting
from matfree.digits import number, supported, supported_interval
from matfree.protocol import Array
from matfree.results import parts
from matfree.results.intervals import require_level, student_quantile
from matfree.results.merging import merged, safe_unit
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
        if parts.has_complex_type(self.value):
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
        return replace(self, **parts.real_or_imaginary(self, "real"), history=())

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
        return replace(self, **parts.real_or_imaginary(self, "imag"), history=())

    def first(self, num_probes: int) -> Estimate:
        """The estimate from the first probes of this run only, which shows how it converged.

        Parameters
        ----------
        num_probes : int
            At least 1, and at most the number of samples.

        Returns
        -------
        Estimate
            Its ``num_matvecs`` is that of the whole run.

        Raises
        ------
        ValueError
            There are not so many samples, or they are not independent (the method is "xtrace" or a
            related one).

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> estimate = mf.trace(np.diag([1.0, 2.0, 3.0]) + 1, num_probes=64, seed=0)
        >>> bool(estimate.first(16).half_width() > estimate.half_width())
        True
        """
        return replace(
            self,
            **parts.first_probes(self, num_probes),
            num_probes=num_probes,
            probe_ranges=(),
            reason=f"the first {num_probes} probes",
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
        """Merge runs over different probes of one problem into one estimate.

        Parameters
        ----------
        *others : Estimate
            Runs of the same method and seed on the same operator, over other probes
            (``first_probe``).

        Returns
        -------
        Estimate
            Its value is that of one run over all the probes, up to rounding. So is its standard
            error, except for random signs, of which each run contributes one deviation less.

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
        >>> bool(np.isclose(parts[0].merge(parts[1]).value, whole.value))
        True
        """
        unit = safe_unit(self.value)
        if unit != 1:
            return self.times(1 / unit).merge(*(run.times(1 / unit) for run in others)).times(unit)
        return replace(self, **merged((self, *others)))

    def __complex__(self) -> complex:
        return complex(self.value)

    def __format__(self, spec: str) -> str:
        """The value in the format of a number, or next to its uncertainty for the format "±".

        Parameters
        ----------
        spec : str
            A format of numbers, such as ".3f" or ".2e", applies to the value. "±" yields the value
            and the half-width of its 95 % interval, with the digits that the latter supports.

        Raises
        ------
        TypeError
            The value is an array.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> estimate = mf.trace(np.diag([1.0, 2.0, 3.0]) + 1, num_probes=40, seed=0)
        >>> f"{estimate:.3f}"
        '8.800'
        >>> f"{estimate:±}"
        '8.8 ± 1.2'
        """
        if not spec:
            return str(self)
        if np.ndim(self.value) > 0:
            raise TypeError(
                f"this estimate is an array, which has no format {spec!r}; format its entries."
            )
        if spec == "±":
            half = self.half_width()
            return f"{supported(self.value, half)} ± {number(half, 2)}"
        return format(self.value, spec)

    def _rows(self) -> list[tuple[str, str]]:
        if hasattr(self.value, "shape") and self.value.shape:
            value, error = f"array of shape {tuple(self.value.shape)}", "one per entry"
        else:
            value, interval = supported(self.value, self.half_width()), self.interval()
            error = f"{self.stderr:.2g}, 95 % interval {supported_interval(*interval)}"
            if parts.has_complex_type(self.value):
                imaginary = supported_interval(*self.imag.interval())
                error += f" of the real part, {imaginary} of the imaginary part"
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
