r"""Counter-based random probes: the same numbers on every backend, block and shard.

Entry i of probe p is a pure function of (seed, stream, p, i). Nothing is stored and no
generator advances, so the block size, the order of the work, the device, the precision
and the number of processes cannot change it, and any part can be made again at will.

The function is Philox4x32-10, which turns a counter of four 32-bit words and a key of
two into four random words. One counter serves 128 signs:

    counter = (i >> 7 low word, i >> 7 high word, p, stream)    key = (seed low, seed high)
    sign of coordinate i = 1 - 2 * bit (i & 31) of word (i >> 5) & 3

A Gaussian pair takes two words by the Box-Muller map, so one counter serves four
Gaussians. This is a frozen format: tests hold golden bytes, and a change is a major
version. Signs and 4th roots of unity agree on all backends to the bit; Gaussians pass
through log, cos and sin and agree to a few units in the last place.

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
"""Streams of one seed: probes, start vectors, sketches, checks, replaced directions."""

_GAUSSIAN_STREAMS = 1 << 16  # Gaussians count in streams of their own, apart from signs
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_ROWS_AT_ONCE = 1 << 14  # rows of a block expanded together: they stay in cache
_SIGN_MAKERS: dict[str, Callable[..., Array]] = {}  # by library: see replace_signs


def resolve_seed(seed: Seed) -> int:
    """The integer that a result reports: ``seed`` itself, fresh entropy, or one draw."""
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


def agreed_seed(seed: Seed, exchange: Callable[[Callable[[], Any]], list[Any]]) -> int:
    """The seed of processes that make the same calls: process 0's, where none was given.

    Parameters
    ----------
    seed : as for :func:`resolve_seed`
    exchange : of a :class:`~matfree.protocol.VectorSpace`

    Raises
    ------
    OperatorError
        They were given different ones.
    """
    told = exchange(lambda: (seed is not None, resolve_seed(seed)))
    given = [str(number) if explicit else "none" for explicit, number in told]
    if len(set(given)) > 1:
        others = [rank for rank, text in enumerate(given) if text != given[0]]
        noun = "process" if len(others) == 1 else "processes"
        raise OperatorError(
            f"{noun} {', '.join(map(str, others))} got another seed than process 0: the seeds are "
            f"{', '.join(given)}; give all of them the same one, or none."
        )
    return int(told[0][1])


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
        # int64 products wrap modulo 2**64 in every library; above its low word no c is looked at.
        product0, product1 = (c0 & _MASK) * _MULTIPLIERS[0], (c2 & _MASK) * _MULTIPLIERS[1]
        c0, c1 = (product1 >> 32) ^ (c1 ^ k0), product1
        c2, c3 = (product0 >> 32) ^ (c3 ^ k1), product0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0 & _MASK, c1 & _MASK, c2 & _MASK, c3 & _MASK


def lanes(
    xp: Any, device: Any, *, blocks: range, probes: range, stream: int, seed: int
) -> tuple[Array, ...]:
    """The four random words of some counters, each int64 (probes, blocks).

    Raises
    ------
    ValueError
        A probe's number does not fit into its word of the counter.
    """
    require_numbers(probes)
    block = xp.arange(blocks.start, blocks.stop, dtype=xp.int64, device=device)[None, :]
    probe = xp.arange(probes.start, probes.stop, dtype=xp.int64, device=device)[:, None]
    counter = (block & _MASK, block >> 32, probe, xp.full_like(probe, stream))
    return philox(counter, (seed & _MASK, seed >> 32))


def words(xp: Any, device: Any, *, blocks: range, probes: range, stream: int, seed: int) -> Array:
    """The same in counter order, int64 (probes, 4 * blocks)."""
    each = lanes(xp, device, blocks=blocks, probes=probes, stream=stream, seed=seed)
    return xp.reshape(xp.stack(each, axis=-1), (len(probes), 4 * len(blocks)))


def require_numbers(probes: range) -> None:
    """Refuse numbers of probes that do not fit into their word of the counter."""
    if not 0 <= probes.start <= probes.stop <= _MASK + 1:
        raise ValueError(
            f"probes are numbered from 0 to 2**32 - 1: got {probes.start} to {probes.stop - 1}; "
            "take another seed for more."
        )


def replace_signs(library: str, maker: Callable[..., Array]) -> None:
    """Let an adapter make the signs of its library's arrays, by a kernel for one.

    Parameters
    ----------
    library : str
        The name of the array namespace, without ``array_api_compat.`` before it.
    maker : function of the arguments of :func:`rademacher`
        It must yield the same bits; where it is not there, the array version does.
    """
    _SIGN_MAKERS[library] = maker


def rademacher(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Random signs, (rows, probes) in C order: coordinate ``rows``, probe ``probes``."""
    library = xp.__name__.removeprefix("array_api_compat.")
    maker: Callable[..., Array] = _SIGN_MAKERS.get(library, signs_by_words)
    return maker(xp, dtype, device, rows=rows, probes=probes, stream=stream, seed=seed)


def signs_by_words(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """The signs in operations that every array library has."""
    blocks = range(rows.start >> 7, -(-rows.stop // 128))
    word = words(xp, device, blocks=blocks, probes=probes, stream=stream, seed=seed)
    shifts = xp.arange(0, 32, 8, dtype=xp.int64, device=device)
    octets = xp.reshape((word[:, :, None] >> shifts) & 0xFF, (len(probes), -1))
    table = _signs_of_a_byte(xp, dtype, device)
    first = blocks.start << 7
    return _expand(xp, octets, table, range(rows.start - first, rows.stop - first), device)


def _signs_of_a_byte(xp: Any, dtype: DType, device: Any) -> Array:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return xp.asarray(1.0 - 2.0 * bits, dtype=dtype, device=device)


def _expand(xp: Any, octets: Array, table: Array, rows: range, device: Any) -> Array:
    """Look every byte up in the table, a slab of rows at a time, and turn it upright."""
    num_probes = octets.shape[0]
    out = xp.empty((len(rows), num_probes), dtype=table.dtype, device=device)
    for begin in range(rows.start, rows.stop, _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, rows.stop)
        slab = octets[:, begin >> 3 : -(-end // 8)]
        signs = xp.take(table, xp.reshape(slab, (-1,)), axis=0)
        signs = xp.reshape(signs, (num_probes, -1))
        skip = begin & 7
        upright = xp.matrix_transpose(signs[:, skip : skip + end - begin])
        out[begin - rows.start : end - rows.start, :] = upright
    return out


def gaussian(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Independent real N(0, 1) entries, (rows, probes), computed in float64.

    A slab of rows at a time: the words behind an entry take several times its room.
    """
    out = xp.empty((len(rows), len(probes)), dtype=dtype, device=device)
    height = min(_ROWS_AT_ONCE, max(1, slab_bytes(device) // (4 * max(1, len(probes)))))
    for begin in range(0, len(rows), height):
        part = slice(begin, min(begin + height, len(rows)))
        slab = _gaussian_slab(xp, device, rows=rows[part], probes=probes, stream=stream, seed=seed)
        out[part, :] = xp.astype(xp.matrix_transpose(slab), dtype)
    return out


def _gaussian_slab(
    xp: Any, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """The same entries, (probes, rows) in float64, by Box and Muller's method."""
    blocks = range(rows.start >> 2, -(-rows.stop // 4))
    each = lanes(
        xp, device, blocks=blocks, probes=probes, stream=stream + _GAUSSIAN_STREAMS, seed=seed
    )
    entries = []
    for pair in (each[:2], each[2:]):
        # never 0, never 1
        u, v = ((xp.astype(word, _double(xp, device)) + 0.5) * 2.0**-32 for word in pair)
        radius, angle = xp.sqrt(-2.0 * xp.log(u)), (2.0 * math.pi) * v
        entries += [radius * xp.cos(angle), radius * xp.sin(angle)]
    first = rows.start - (blocks.start << 2)
    both = xp.reshape(xp.stack(entries, axis=-1), (len(probes), -1))
    return both[:, first : first + len(rows)]


def fourth_roots(
    xp: Any, dtype: DType, device: Any, *, rows: range, probes: range, stream: int, seed: int
) -> Array:
    """Uniform entries from {1, i, -1, -i} (Z4 noise), two sign bits a coordinate."""
    twice = range(2 * rows.start, 2 * rows.stop)
    signs = rademacher(xp, xp.int8, device, rows=twice, probes=probes, stream=stream, seed=seed)
    pairs = xp.reshape(signs, (len(rows), 2, len(probes)))
    sign, turn = xp.astype(pairs[:, 0, :], dtype), pairs[:, 1, :] < 0
    return xp.where(turn, sign * 1j, sign)


def _double(xp: Any, device: Any) -> DType:
    """float64 where the device has it, else the widest real type it has."""
    dtypes = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    return dtypes.get("float64", xp.float32)
