"""What estimates have in common that are derived from the samples of others."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from array_api_compat import array_namespace, is_array_api_obj

from matfree.arrays import is_complex
from matfree.protocol import HostArray
from matfree.results.intervals import MeanError, mean_error


class Sampled(Protocol):
    """An ``Estimate``, as far as its samples are concerned."""

    @property
    def value(self) -> Any:
        """A number, or an array with one number per entry."""

    @property
    def stderr(self) -> Any:
        """Its standard error."""

    @property
    def degrees_of_freedom(self) -> float:
        """Those of Student's distribution."""

    @property
    def samples(self) -> Any:
        """One estimate per probe, or None."""

    @property
    def deviations(self) -> Any:
        """Numbers whose mean square is the variance of a sample, or None."""

    @property
    def method(self) -> str:
        """The name of the estimator."""

    @property
    def mergeable(self) -> bool:
        """Whether the samples are averaged independently."""

    @property
    def kind(self) -> str:
        """The distribution of the probes."""

    @property
    def size(self) -> int:
        """The size of the operator."""


def from_samples(
    samples: HostArray, deviations: HostArray | None, *, kind: str, size: int
) -> dict[str, Any]:
    """The fields of the mean of independent samples, with its error."""
    error = mean_error(samples, deviations, kind=kind, size=size)
    found = {"samples": samples, "deviations": deviations}
    return {"value": samples.mean().item(), **error._asdict(), **found}


def first_probes(estimate: Sampled, num_probes: int) -> dict[str, Any]:
    """The fields of the estimate from the first probes only."""
    samples, deviations = estimate.samples, estimate.deviations
    if samples is None or not estimate.mergeable:
        raise ValueError(f"an estimate by {estimate.method!r} has no independent samples.")
    if not 1 <= num_probes <= len(samples):
        raise ValueError(
            f"num_probes must be in [1, {len(samples)}], the samples of this run: got {num_probes}."
        )
    if deviations is not None:  # one fewer than samples, if they are those from earlier probes
        deviations = deviations[: max(len(deviations) - len(samples) + num_probes, 0)]
    chosen = samples[:num_probes]
    return from_samples(chosen, deviations, kind=estimate.kind, size=estimate.size)


def real_or_imaginary(estimate: Sampled, part: Literal["real", "imag"]) -> dict[str, Any]:
    """The fields of the estimate of one part of a complex number or array."""
    samples = None if estimate.samples is None else part_of(estimate.samples, part)
    deviations = None if estimate.deviations is None else part_of(estimate.deviations, part)
    # Of both parts together, which bounds that of each.
    error = MeanError(estimate.stderr, estimate.degrees_of_freedom)
    if estimate.mergeable and samples is not None and len(samples) > 1:
        error = mean_error(samples, deviations, kind=estimate.kind, size=estimate.size)
    value = part_of(estimate.value, part)
    return {"value": value, **error._asdict(), "samples": samples, "deviations": deviations}


def part_of(value: Any, part: Literal["real", "imag"]) -> Any:
    """The real or imaginary part of a number or an array of any library."""
    if not is_array_api_obj(value):
        return getattr(value, part)
    xp = array_namespace(value)
    if is_complex(xp, value.dtype):
        return getattr(xp, part)(value)
    return value if part == "real" else xp.zeros_like(value)


def has_complex_type(value: Any) -> bool:
    """Whether a number, or the entries of an array, are of a complex type."""
    if not is_array_api_obj(value):
        return isinstance(value, complex)
    return is_complex(array_namespace(value), value.dtype)
