"""The probe distributions, in the data type and for the local rows of a vector space."""

from __future__ import annotations

from collections.abc import Callable

from matfree import probes
from matfree.arrays import is_complex
from matfree.protocol import Array
from matfree.reductions import Reductions


def draw(space: Reductions, kind: str, indices: range, *, seed: int, stream: int) -> Array:
    """The probes with these indices, (rows, len(indices)); see ``VectorSpace.probes``."""
    draw_kind = _DISTRIBUTIONS.get(kind)
    if draw_kind is None:
        raise ValueError(
            f"kind must be one of {', '.join(map(repr, _DISTRIBUTIONS))}: got {kind!r}."
        )
    probes.require_numbers(indices)
    return draw_kind(space, indices, seed, stream)


def _draw_rademacher(space: Reductions, indices: range, seed: int, stream: int) -> Array:
    return _local_rows(probes.rademacher, space, indices, seed, stream)


def _draw_z4(space: Reductions, indices: range, seed: int, stream: int) -> Array:
    if not is_complex(space.xp, space.dtype):
        raise ValueError(
            "kind='z4' has complex entries; pass kind='rademacher' for a real operator."
        )
    return _local_rows(probes.fourth_roots, space, indices, seed, stream)


def _draw_gaussian(space: Reductions, indices: range, seed: int, stream: int) -> Array:
    if not is_complex(space.xp, space.dtype):
        return _local_rows(probes.gaussian, space, indices, seed, stream)
    # The real and the imaginary part are the coordinates 2 i and 2 i + 1 of a real probe.
    double = space.xp.float64
    rows = range(2 * space.rows.start, 2 * space.rows.stop)
    parts = probes.gaussian(
        space.xp, double, space.device, rows=rows, probes=indices, stream=stream, seed=seed
    )
    parts = space.xp.reshape(parts * 0.5**0.5, (len(space.rows), 2, len(indices)))
    return space.xp.astype(parts[:, 0, :] + 1j * parts[:, 1, :], space.dtype)


def _draw_sphere(space: Reductions, indices: range, seed: int, stream: int) -> Array:
    W = _draw_gaussian(space, indices, seed, stream)
    W *= space.xp.astype(space.size**0.5 / space.norms(W), W.dtype)[None, :]  # in place
    return W


def _local_rows(
    distribution: Callable[..., Array], space: Reductions, indices: range, seed: int, stream: int
) -> Array:
    return distribution(
        space.xp,
        space.dtype,
        space.device,
        rows=space.rows,
        probes=indices,
        stream=stream,
        seed=seed,
    )


_DISTRIBUTIONS: dict[str, Callable[[Reductions, range, int, int], Array]] = {
    "rademacher": _draw_rademacher,
    "gaussian": _draw_gaussian,
    "sphere": _draw_sphere,
    "z4": _draw_z4,
}
