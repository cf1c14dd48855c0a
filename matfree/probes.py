r"""Counter-based random probes: the same numbers on every backend, in every block and shard.

Entry i of probe p is a pure function of (seed, stream, p, i). There is no generator with a state,
so the numbers do not depend on the block size, the order of the computation, the device, the
precision or the number of processes, and any part of a probe can be computed again at any time.

The function is Philox4x32-10, which maps a counter of four 32-bit words and a key of two words to
four random words. One counter yields 128 signs:

.. math::

    \text{counter} &= (\lfloor i / 128 \rfloor \text{ low},
        \lfloor i / 128 \rfloor \text{ high}, p, \text{stream}), \\
    \text{key} &= (\text{seed low}, \text{seed high}), \\
    \text{sign}_i &= 1 - 2 b_i, \qquad b_i = \text{bit } (i \bmod 32)
        \text{ of word } \lfloor i / 32 \rfloor \bmod 4.

The Box-Muller map turns two words into two Gaussians, so that one counter yields four Gaussians.
This is a frozen format: the tests contain golden bytes, and a change requires a new major version.
Signs and fourth roots of unity agree bit for bit on all backends. Gaussians, which pass through
log, cos and sin, agree to a few units in the last place.

References
----------
J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw (2011), Parallel random numbers: as
easy as 1, 2, 3, SC '11, doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from matfree.arrays import slab_bytes
from matfree.errors import OperatorError
from matfree.protocol import Array, DType, Seed

PROBES, START, SKETCH, CHECK, REFILL = range(5)
"""The streams of a seed: probes, start vectors, sketches, checks, replacement directions."""

_GAUSSIAN_STREAMS = 1 << 16  # added to the stream, so that Gaussians are independent of signs
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_ROWS_PER_SLAB = 1 << 14  # rows that are expanded together, because they fit the cache
_SIGN_KERNELS: dict[str, Callable[..., Array]] = {}  # by library; see replace_signs


def resolve_seed(seed: Seed) -> int:
    """The integer that results report as their seed.

    It is ``seed`` itself for an integer, fresh entropy for None, and one draw from a generator.
    """
    if seed is None:
        return secrets.randbits(53)  # 53 bits survive any JSON reader
    if isinstance(seed, np.random.Generator):
        return int(seed.integers(1 << 53))
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        if 0 <= int(seed) < 1 << 64:
            return int(seed)
        raise ValueError(f"seed must be in [0, 2**64): got {seed}; reduce it modulo 2**64.")
    raise TypeError(
        "seed must be an int, None or a numpy.random.Generator: "
        f"got {type(seed).__name__}; pass seed=0 for a reproducible run."
    )


def agreed_seed(seed: Seed, all_gather_object: Callable[[Callable[[], Any]], list[Any]]) -> int:
    """The common seed of all processes: the given one, or else the fresh one of process 0.

    Parameters
    ----------
    seed : int, Generator or None
        As for :func:`resolve_seed`.
    all_gather_object : function
        The method of a :class:`matfree.VectorSpace`.

    Raises
    ------
    OperatorError
        The processes were given different seeds.
    """
    # Every rank draws a seed, but only that of rank 0 is used: all ranks make the same call.
    seeds = all_gather_object(lambda: (seed is not None, resolve_seed(seed)))
    given = [str(number) if explicit else "none" for explicit, number in seeds]
    if len(set(given)) > 1:
        others = [rank for rank, text in enumerate(given) if text != given[0]]
        noun = "process" if len(others) == 1 else "processes"
        raise OperatorError(
            f"{noun} {', '.join(map(str, others))} got another seed than process 0: the seeds are "
            f"{', '.join(given)}; pass the same seed in all processes, or none in any."
        )
    return int(seeds[0][1])


def philox(counter: tuple[Array, ...], key: tuple[int, int]) -> tuple[Array, ...]:
    """Four random 32-bit words for each counter.

    Parameters
    ----------
    counter : four int64 arrays of one shape, or of shapes that broadcast, in [0, 2**32)
    key : two integers in [0, 2**32)

    Returns
    -------
    Four int64 arrays in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64 in every library. Of each c, only the low word is used.
        product0, product1 = (c0 & _MASK) * _MULTIPLIERS[0], (c2 & _MASK) * _MULTIPLIERS[1]
        c0, c1 = (product1 >> 32) ^ (c1 ^ k0), product1
        c2, c3 = (product0 >> 32) ^ (c3 ^ k1), product0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0 & _MASK, c1 & _MASK, c2 & _MASK, c3 & _MASK


def lanes(
    xp: Any, device: Any, *, blocks: range, probes: range, stream: int, seed: int
) -> tuple[Array, ...]:
    """The four random words of each counter, as four int64 arrays (probes, blocks).

    Raises
    ------
    ValueError
        The index of a probe does not fit into its word of the counter.
    """
    require_numbers(probes)
    block = xp.arange(blocks.start, blocks.stop, dtype=xp.int64, device=device)[None, :]
    probe = xp.arange(probes.start, probes.stop, dtype=xp.int64, device=device)[:, None]
    counter = (block & _MASK, block >> 32, probe, xp.full_like(probe, stream))
    return philox(counter, (seed & _MASK, seed >> 32))


def words(xp: Any, device: Any, *, blocks: range, probes: range, stream: int, seed: int) -> Array:
    """The random words of :func:`lanes` in the order of the counters, int64 (probes, 4 blocks)."""
    each = lanes(xp, device, blocks=blocks, probes=probes, stream=stream, seed=seed)
    return xp.reshape(xp.stack(each, axis=-1), (len(probes), 4 * len(blocks)))


def require_numbers(probes: range) -> None:
    """Refuse probes whose numbers do not fit into their word of the counter."""
    if not 0 <= probes.start <= probes.stop <= _MASK + 1:
        raise ValueError(
            f"probes are numbered from 0 to 2**32 - 1: got {probes.start} to {probes.stop - 1}; "
            "pass another seed for more probes."
        )


def replace_signs(library: str, kernel: Callable[..., Array]) -> None:
    """Register an adapter's kernel for the signs of an array library.

    Parameters
    ----------
    library : str
        The name of the array namespace, without the prefix ``array_api_compat.``.
    kernel : function
        It takes the arguments of :func:`rademacher` and must return the same bits as
        :func:`signs_by_words`, which libraries without a kernel use.
    """
    _SIGN_KERNELS[library] = kernel


def rademacher(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Random signs, (rows, probes) in C order, for these coordinates and probe numbers."""
    library = xp.__name__.removeprefix("array_api_compat.")
    kernel: Callable[..., Array] = _SIGN_KERNELS.get(library, signs_by_words)
    return kernel(xp, dtype, device, rows=rows, probes=probes, stream=stream, seed=seed)


def signs_by_words(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """The signs of :func:`rademacher`, by operations that every array library has."""
    blocks = range(rows.start >> 7, -(-rows.stop // 128))
    word = words(xp, device, blocks=blocks, probes=probes, stream=stream, seed=seed)
    shifts = xp.arange(0, 32, 8, dtype=xp.int64, device=device)
    octets = xp.reshape((word[:, :, None] >> shifts) & 0xFF, (len(probes), -1))
    table = _signs_of_bytes(xp, dtype, device)
    first = blocks.start << 7
    return _expand(xp, octets, table, range(rows.start - first, rows.stop - first), device)


def _signs_of_bytes(xp: Any, dtype: DType, device: Any) -> Array:
    """A table of the 8 signs that each of the 256 bytes encodes, (256, 8)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return xp.asarray(1.0 - 2.0 * bits, dtype=dtype, device=device)


def _expand(xp: Any, octets: Array, table: Array, rows: range, device: Any) -> Array:
    """Look up the signs of all bytes and transpose them to (rows, probes), slab by slab."""
    num_probes = octets.shape[0]
    out = xp.empty((len(rows), num_probes), dtype=table.dtype, device=device)
    for begin in range(rows.start, rows.stop, _ROWS_PER_SLAB):
        end = min(begin + _ROWS_PER_SLAB, rows.stop)
        slab = octets[:, begin >> 3 : -(-end // 8)]
        signs = xp.take(table, xp.reshape(slab, (-1,)), axis=0)
        signs = xp.reshape(signs, (num_probes, -1))
        skip = begin & 7
        columns = xp.matrix_transpose(signs[:, skip : skip + end - begin])
        out[begin - rows.start : end - rows.start, :] = columns
    return out


def gaussian(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Independent real N(0, 1) entries, (rows, probes), computed in float64.

    The rows are computed in slabs, because the random words need several times the memory of the
    entries.
    """
    out = xp.empty((len(rows), len(probes)), dtype=dtype, device=device)
    height = min(_ROWS_PER_SLAB, max(1, slab_bytes(device) // (4 * max(1, len(probes)))))
    for begin in range(0, len(rows), height):
        own = slice(begin, min(begin + height, len(rows)))
        slab = _gaussian_slab(xp, device, rows=rows[own], probes=probes, stream=stream, seed=seed)
        out[own, :] = xp.astype(xp.matrix_transpose(slab), dtype)
    return out


def _gaussian_slab(
    xp: Any, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """The entries of :func:`gaussian`, (probes, rows) in float64, by the Box-Muller map."""
    blocks = range(rows.start >> 2, -(-rows.stop // 4))
    each = lanes(
        xp, device, blocks=blocks, probes=probes, stream=stream + _GAUSSIAN_STREAMS, seed=seed
    )
    entries = []
    for pair in (each[:2], each[2:]):
        # The offset 0.5 keeps u above 0, where log would be infinite, and below 1.
        u, v = ((xp.astype(word, _widest_real(xp, device)) + 0.5) * 2.0**-32 for word in pair)
        radius, angle = xp.sqrt(-2.0 * xp.log(u)), (2.0 * math.pi) * v
        entries += [radius * xp.cos(angle), radius * xp.sin(angle)]
    first = rows.start - (blocks.start << 2)
    in_order = xp.reshape(xp.stack(entries, axis=-1), (len(probes), -1))
    return in_order[:, first : first + len(rows)]


def fourth_roots(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Uniform entries from {1, i, -1, -i} (Z4 noise), from two sign bits per coordinate."""
    twice = range(2 * rows.start, 2 * rows.stop)
    signs = rademacher(xp, xp.int8, device, rows=twice, probes=probes, stream=stream, seed=seed)
    pairs = xp.reshape(signs, (len(rows), 2, len(probes)))
    sign, turn = xp.astype(pairs[:, 0, :], dtype), pairs[:, 1, :] < 0
    return xp.where(turn, sign * 1j, sign)


def _widest_real(xp: Any, device: Any) -> DType:
    """float64 if the device has it, and float32 otherwise."""
    dtypes = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    return dtypes.get("float64", xp.float32)
