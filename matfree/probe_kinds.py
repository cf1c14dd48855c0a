"""The kinds of probes, as a space draws them: each a function of (seed, stream, probe, row)."""

from __future__ import annotations

from collections.abc import Callable

from matfree import probes
from matfree.arrays import is_complex
from matfree.protocol import Array
from matfree.reductions import Reductions


def draw(space: Reductions, kind: str, numbers: range, *, seed: int, stream: int) -> Array:
    """Probes of these numbers, (rows, len(numbers)): ``Reductions.probes``."""
    maker = _PROBE_MAKERS.get(kind)
    if maker is None:
        raise ValueError(
            f"kind must be one of {', '.join(map(repr, _PROBE_MAKERS))}: got {kind!r}."
        )
    return maker(space, numbers, seed, stream)


def _signs(space: Reductions, numbers: range, seed: int, stream: int) -> Array:
    return _draw(probes.rademacher, space, numbers, seed, stream)


def _z4(space: Reductions, numbers: range, seed: int, stream: int) -> Array:
    if not is_complex(space.xp, space.dtype):
        raise ValueError("kind='z4' has complex entries; a real operator takes 'rademacher'.")
    return _draw(probes.fourth_roots, space, numbers, seed, stream)


def _gaussian(space: Reductions, numbers: range, seed: int, stream: int) -> Array:
    if not is_complex(space.xp, space.dtype):
        return _draw(probes.gaussian, space, numbers, seed, stream)
    double = space.xp.float64  # real and imaginary part are neighbouring coordinates
    rows = range(2 * space.rows.start, 2 * space.rows.stop)
    parts = probes.gaussian(
        space.xp, double, space.device, rows=rows, probes=numbers, stream=stream, seed=seed
    )
    parts = space.xp.reshape(parts * 0.5**0.5, (len(space.rows), 2, len(numbers)))
    return space.xp.astype(parts[:, 0, :] + 1j * parts[:, 1, :], space.dtype)


def _sphere(space: Reductions, numbers: range, seed: int, stream: int) -> Array:
    W = _gaussian(space, numbers, seed, stream)
    W *= space.xp.astype(space.size**0.5 / space.norms(W), W.dtype)[None, :]  # in place
    return W


def _draw(
    maker: Callable[..., Array], space: Reductions, numbers: range, seed: int, stream: int
) -> Array:
    return maker(
        space.xp,
        space.dtype,
        space.device,
        rows=space.rows,
        probes=numbers,
        stream=stream,
        seed=seed,
    )


_PROBE_MAKERS: dict[str, Callable[[Reductions, range, int, int], Array]] = {
    "rademacher": _signs,
    "gaussian": _gaussian,
    "sphere": _sphere,
    "z4": _z4,
}
