"""An estimated number (or vector) with an error bar that means what it says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from matfree import plotting
from matfree.protocol import Array
from matfree.results.intervals import require_level, student_quantile
from matfree.results.record import Record, memory_rows

_TOO_FAR = 10.0
"""Standard errors by which runs of one operator do not differ: Student's t, 1 in 10^7."""

_ENOUGH_TO_TELL = 16
"""Probes: fewer may agree by chance, and show no spread at all."""

_NO_MATTER = 1e-4
"""A relative difference that rounding may make in a low precision."""


@final
@dataclass(frozen=True, eq=False)
class Estimate(Record):
    """The result of a stochastic estimator: a value, its error bar, and how it came about.

    ``float(estimate)`` is the value. Where the value is an array (a diagonal), so is the
    standard error, and the interval holds entry by entry.

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
    """Its standard error, like ``value`` but real: 0 where exact, inf after one probe."""
    method: str
    """The estimator's name, or "exact"."""
    num_probes: int
    """Random probes used; 0 where the answer is exact."""
    num_matvecs: int
    """Products of the operator with one vector, everything counted."""
    degrees_of_freedom: float
    """Of Student's t for the interval: num_probes - 1; inf where the answer is exact."""
    converged: bool
    """Whether the tolerance was met; True where none was asked for."""
    reason: str
    """Why it stopped, in words."""
    seed: int
    """The seed that repeats this run."""
    kind: str = "rademacher"
    """The distribution of the probes."""
    size: int = 0
    """n of the operator."""
    samples: Array | None = None
    """One estimate per probe, (num_probes,) float64 or complex128, for a scalar value."""
    probe_ranges: tuple[tuple[int, int], ...] = ()
    """Which probes were used, as ranges (first, past the last) of their numbers."""
    bias: float = 0.0
    """A bound on what is no sampling error: that of the quadrature behind tr f(A). It is
    added to the half-width."""
    mergeable: bool = False
    """Whether the probes entered independently, so that runs over other probes can join."""
    limits: tuple[float, float] | None = None
    """What the value is known to lie in, whatever was sampled: a fraction lies in (0, 1)."""
    history: tuple[tuple[int, float, float], ...] = field(default=(), repr=False)
    """(products, value, half-width of the 95 % interval) each time it was looked at; for
    a diagonal the 2-norms of both."""

    memory: dict[str, Any] = field(default_factory=dict)
    """The choice made where a budget of memory was given: "basis" ("full", "half", "none"),
    "at_once" (probes), "predicted" and "budget" (bytes at the peak, per process)."""
    rows: tuple[int, int, int] | None = None
    """(start, stop, n) where the value is an array of which these entries are here, and the
    others in other processes."""

    by_row: ClassVar[dict[str, tuple[int, str]]] = {"value": (0, "rows"), "stderr": (0, "rows")}

    def half_width(self, level: float = 0.95) -> Any:
        """Half of the interval's width: Student's t quantile times the standard error, and
        the bias."""
        require_level(level)
        return student_quantile(level, self.degrees_of_freedom) * self.stderr + self.bias

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The confidence interval (low, high) at ``level``, by Student's t.

        For a complex value it is the interval of the real part.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> low, high = mf.trace(np.diag([1.0, 2.0, 3.0]), num_probes=4, seed=0).interval()
        >>> low, high  # signs see a diagonal matrix exactly
        (6.0, 6.0)
        """
        half, center = self.half_width(level), _real(self.value)
        if self.limits is None:
            return center - half, center + half
        lowest, highest = self.limits
        return max(center - half, lowest), min(center + half, highest)

    def plot(self, ax: Any = None, *, exact: Any = None) -> Any:
        """Draw the samples or the diagonal's intervals, and return the Axes.

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
        """One estimate from runs over different probes of one problem, exactly.

        Parameters
        ----------
        *others : Estimate
            Runs of the same method and seed on the same operator, over other probes
            (``first_probe``).

        Returns
        -------
        Estimate
            What one run over all the probes would have given, to rounding.

        Raises
        ------
        ValueError
            The runs differ in method or seed, share a probe, are of a method whose probes
            work together ("xtrace" and its relatives), or are so far apart that they cannot
            be of one operator: 10 standard errors, from 16 probes on.

        Examples
        --------
        >>> import matfree as mf, numpy as np
        >>> A = np.diag([1.0, 2.0, 3.0]) + 1
        >>> parts = [mf.trace(A, num_probes=5, first_probe=i, seed=0) for i in (0, 5)]
        >>> whole = mf.trace(A, num_probes=10, seed=0)
        >>> bool(np.isclose(parts[0].merge(parts[1]).stderr, whole.stderr))
        True
        """
        runs = (self, *others)
        for name in ("method", "seed", "kind", "size"):
            require_same(name, [getattr(run, name) for run in runs])
        if not all(run.mergeable for run in runs):
            raise ValueError(
                f"estimates by {self.method!r} cannot be merged: their probes do not enter "
                "independently; run it once with more probes."
            )
        ranges = joined_ranges([run.probe_ranges for run in runs])
        require_agreement(runs)
        count = sum(run.num_probes for run in runs)
        samples = None
        if all(run.samples is not None for run in runs):
            samples = np.concatenate([run.samples for run in by_first_probe(runs)])
            value = samples.mean().item()
            deviations = float(np.sum(np.abs(samples - value) ** 2))
        else:
            value = sum(run.value * (run.num_probes / count) for run in runs)
            deviations = sum(_squared_deviations(run, value) for run in runs)
        return replace(
            self,
            value=value,
            stderr=(deviations / (count * max(count - 1, 1))) ** 0.5 if count > 1 else math.inf,
            num_probes=count,
            num_matvecs=sum(run.num_matvecs for run in runs),
            degrees_of_freedom=count - 1,
            converged=all(run.converged for run in runs),
            reason=f"{len(runs)} runs merged",
            samples=samples,
            probe_ranges=ranges,
            bias=max(run.bias for run in runs),
            history=(),
        )

    def __complex__(self) -> complex:
        return complex(self.value)

    def _rows(self) -> list[tuple[str, str]]:
        if hasattr(self.value, "shape") and self.value.shape:
            value, bar = f"array of shape {tuple(self.value.shape)}", "one per entry"
        else:
            value, (low, high) = f"{self.value:.8g}", self.interval()
            bar = f"{self.stderr:.2g}, 95 % interval [{low:.6g}, {high:.6g}]"
        if self.bias:
            bar += f", of which {self.bias:.2g} each way are quadrature"
        return [
            ("value", value),
            ("standard error", bar),
            ("method", self.method),
            ("cost", f"{self.num_matvecs} products, {self.num_probes} probes"),
            ("converged", f"{'yes' if self.converged else 'NO'}: {self.reason}"),
            *memory_rows(self.memory),
            ("seed", str(self.seed)),
        ]


def require_same(name: str, values: list[Any]) -> None:
    """Refuse to merge runs that differ in what must be one."""
    if len(set(values)) > 1:
        raise ValueError(f"only runs of one {name} can be merged: got {values}.")


def require_agreement(runs: Sequence[Estimate]) -> None:
    """Refuse to merge what no chance explains: estimates of different operators."""
    first = max(runs, key=lambda run: run.num_probes)
    for run in runs:
        if run.num_probes < _ENOUGH_TO_TELL:
            continue
        apart, chance = _length(run.value - first.value), _length(first.stderr, run.stderr)
        if apart > _TOO_FAR * chance + _NO_MATTER * _length(first.value):
            raise ValueError(
                f"the runs over probes {_ranges(first)} and {_ranges(run)} are {apart:.3g} apart "
                f"where {chance:.2g} is their standard error: they are of different operators "
                "(other weights, other data?), and cannot be merged."
            )


def joined_ranges(parts: list[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...]:
    """Ranges of probe numbers put together in order; ValueError where two overlap."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(pair for part in parts for pair in part):
        if joined and first < joined[-1][1]:
            raise ValueError(
                f"probes {first} to {min(last, joined[-1][1]) - 1} are in two of the runs; merge "
                "runs over different probes (first_probe)."
            )
        if joined and first == joined[-1][1]:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return tuple(joined)


def by_first_probe(runs: Any) -> list[Any]:
    """Runs in the order of their probes, so that the order of merging does not matter."""
    return sorted(runs, key=lambda run: run.probe_ranges)


def _squared_deviations(run: Estimate, center: Any) -> Any:
    """Sum of squared deviations from ``center`` that a run's mean and bar stand for."""
    m = run.num_probes
    within = run.stderr**2 * (m * (m - 1)) if m > 1 else 0.0
    return within + m * abs(run.value - center) ** 2


def _length(*parts: Any) -> float:
    """The 2-norm of numbers or arrays put together."""
    total = 0.0
    for part in parts:
        squares = abs(part) ** 2
        xp = array_namespace(squares) if is_array_api_obj(squares) else np
        total += float(xp.sum(squares))
    return math.sqrt(total)


def _ranges(run: Estimate) -> str:
    return " and ".join(f"{first} to {last - 1}" for first, last in run.probe_ranges)


def _real(value: Any) -> Any:
    return value.real if isinstance(value, complex) else value
