"""Probes follow the frozen format on every backend: one value per (seed, stream, probe, row)."""

import itertools

import numpy as np
import pytest
import scipy.stats
from support.backends import MAKERS, ON_A_GPU

import matfree as mf
from matfree import probes
from matfree.arrays import to_host

MASK = 0xFFFFFFFF
SEEDS = [0, 1, 2**63 + 5, 2**64 - 1]


def philox(counter, key):
    """Philox4x32-10 in Python integers, as an independent oracle."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def sign(seed, stream, probe, i):
    """The sign that the format assigns to one coordinate of one probe."""
    block = i >> 7
    word = philox((block & MASK, block >> 32, probe, stream), (seed & MASK, seed >> 32))
    return 1 - 2 * (word[(i >> 5) & 3] >> (i & 31) & 1)


# P28: the known answers published with Random123.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers_on_every_backend(backend, counter, key, answer):
    assert philox(counter, key) == answer  # checks the oracle
    words = [backend.asarray([c], np.int64) for c in counter]
    got = probes.philox(tuple(words), key)
    assert tuple(int(to_host(word)[0]) for word in got) == answer


@pytest.mark.parametrize("seed", SEEDS)
def test_signs_follow_the_format_on_every_backend_and_in_every_precision(backend, dtype, seed):
    space = mf.space_like(backend.asarray([0], dtype), 300)
    got = to_host(space.probes(3, seed=seed, start=5, stream=2))
    expected = [[sign(seed, 2, 5 + p, i) for p in range(3)] for i in range(300)]
    assert got.dtype == dtype
    assert np.array_equal(got, expected)


def test_golden_bytes_never_change():
    signs = mf.space_like(np.zeros(1), 128).probes(1, seed=2024)[:, 0]
    packed = np.packbits(signs < 0, bitorder="little").tobytes()
    words = philox((0, 0, 0, 0), (2024, 0))
    assert packed == b"".join(word.to_bytes(4, "little") for word in words)
    assert packed.hex() == GOLDEN


GOLDEN = "736b8b9a4690c044b9a90efc928c6615"


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sphere", "z4"])
@pytest.mark.parametrize("block", [1, 7, 32])
def test_block_size_does_not_change_a_probe(kind, block):
    space = mf.space_like(np.zeros(1, complex), 1000)
    whole = space.probes(40, seed=3, kind=kind)
    parts = [
        space.probes(min(block, 40 - first), seed=3, start=first, kind=kind)
        for first in range(0, 40, block)
    ]
    joined = np.concatenate(parts, axis=1)
    if kind == "sphere":  # the norm is a sum, whose order may change the last digit
        np.testing.assert_allclose(joined, whole, rtol=1e-15)
    else:
        assert np.array_equal(joined, whole)


@pytest.mark.parametrize("rows", [range(5), range(3, 700), range(129, 131), range(640, 1000)])
def test_a_range_of_rows_equals_these_rows_of_the_whole_probe(rows):
    xp, dtype = mf.space_like(np.zeros(1), 1).xp, np.float64
    args = {"probes": range(2, 5), "stream": 1, "seed": 11}
    for maker in (probes.rademacher, probes.gaussian):
        whole = maker(xp, dtype, "cpu", rows=range(1000), **args)
        part = maker(xp, dtype, "cpu", rows=rows, **args)
        assert np.array_equal(part, whole[rows.start : rows.stop])


def test_slabs_may_begin_inside_a_byte():
    xp = mf.space_like(np.zeros(1), 1).xp
    args = {"probes": range(2), "stream": 0, "seed": 1}
    size = 3 * (1 << 14) + 77
    whole = probes.rademacher(xp, np.float64, "cpu", rows=range(size), **args)
    shifted = probes.rademacher(xp, np.float64, "cpu", rows=range(3, size), **args)
    assert np.array_equal(shifted, whole[3:])


def test_coordinates_beyond_two_to_the_forty_have_signs_of_their_own():
    xp = mf.space_like(np.zeros(1), 1).xp
    far = range(2**40 + 3, 2**40 + 300)
    got = probes.rademacher(xp, np.float64, "cpu", rows=far, probes=range(1), stream=0, seed=9)
    assert np.array_equal(got[:, 0], [sign(9, 0, 0, i) for i in far])
    near = probes.rademacher(
        xp, np.float64, "cpu", rows=range(3, 300), probes=range(1), stream=0, seed=9
    )
    assert not np.array_equal(got, near)


def test_gaussians_agree_across_libraries_to_a_few_units_in_the_last_place(backend):
    here = mf.space_like(np.zeros(1), 5000).probes(2, seed=4, kind="gaussian")
    there = mf.space_like(backend.asarray([0.0]), 5000).probes(2, seed=4, kind="gaussian")
    # log, cos and sin of two libraries differ by an ulp or two of numbers below 7
    assert np.abs(to_host(there) - here).max() <= 1e-14


def test_gaussians_are_gaussian():
    sample = mf.space_like(np.zeros(1), 50_000).probes(2, seed=1, kind="gaussian")
    # Kolmogorov-Smirnov at a false-alarm rate of 1e-3 for this fixed seed
    assert scipy.stats.kstest(sample.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(sample.T)[0, 1]) < 5 / np.sqrt(50_000)


def test_complex_gaussians_and_spheres_have_unit_variance_and_exact_norms():
    space = mf.space_like(np.zeros(1, complex), 20_000)
    G = space.probes(1, seed=1, kind="gaussian")
    assert abs(np.mean(np.abs(G) ** 2) - 1) < 5 / np.sqrt(20_000)
    assert abs(np.mean(G**2)) < 5 / np.sqrt(10_000)  # circular: no preferred phase
    W = space.probes(3, seed=1, kind="sphere")
    np.testing.assert_allclose(np.linalg.norm(W, axis=0), np.sqrt(20_000), rtol=1e-14)


def test_z4_takes_the_four_roots_of_unity_equally_often():
    W = mf.space_like(np.zeros(1, complex), 40_000).probes(1, seed=2, kind="z4")[:, 0]
    counts = [np.sum(root == W) for root in (1, 1j, -1, -1j)]
    assert sum(counts) == 40_000
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_streams_of_one_seed_are_uncorrelated():
    space = mf.space_like(np.zeros(1), 10_000)
    blocks = [space.probes(1, seed=1, stream=stream)[:, 0] for stream in range(5)]
    for a, b in itertools.combinations(blocks, 2):
        assert abs(a @ b) < 5 * np.sqrt(10_000)  # 5 sigma


def test_probes_and_seeds_are_uncorrelated():
    # 5 sigma for each of the 496 pairs: one false alarm in 3,500 sets of seeds
    space, n = mf.space_like(np.zeros(1), 4096), 4096
    probes_of_one_seed = space.probes(32, seed=123)
    consecutive_seeds = np.hstack([space.probes(1, seed=s) for s in range(32)])
    one_bit_apart = np.hstack([space.probes(1, seed=1 << s) for s in range(32)])
    diagonal = np.hstack([space.probes(1, seed=s, start=31 - s) for s in range(32)])
    for block in (probes_of_one_seed, consecutive_seeds, one_bit_apart, diagonal):
        gram = block.T @ block - n * np.eye(32)
        assert np.abs(gram).max() < 5 * np.sqrt(n)
        assert np.abs(block.sum(axis=0)).max() < 5 * np.sqrt(n)


def test_bytes_are_uniform_and_neighbouring_signs_uncorrelated():
    signs = mf.space_like(np.zeros(1), 1 << 17).probes(1, seed=7)[:, 0]
    octets = np.packbits(signs < 0)
    assert scipy.stats.chisquare(np.bincount(octets, minlength=256)).pvalue > 1e-3
    for lag in (1, 2, 31, 32, 33, 127, 128, 129):
        assert abs(signs[lag:] @ signs[:-lag]) < 5 * np.sqrt(signs.size)


@pytest.mark.parametrize("name", ["torch", "strict", "strict-device1", *ON_A_GPU])
def test_start_vectors_of_one_seed_are_bit_equal_to_numpys(name):
    other = MAKERS[name]()
    here = mf.space_like(np.zeros(1), 777).probes(4, seed=12, start=3)
    there = mf.space_like(other.asarray([0.0]), 777).probes(4, seed=12, start=3)
    assert np.array_equal(to_host(there), here)


def test_a_seed_is_an_integer_or_none_or_a_generator_that_is_drawn_from_once():
    assert probes.resolve_seed(np.int64(7)) == 7
    assert probes.resolve_seed(None) != probes.resolve_seed(None)
    rng = np.random.default_rng(0)
    first, second = probes.resolve_seed(rng), probes.resolve_seed(rng)
    assert first != second
    assert first == probes.resolve_seed(np.random.default_rng(0))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        probes.resolve_seed(seed)


@pytest.mark.parametrize("seed", ["1", 1.0, True])
def test_a_seed_of_another_type_is_refused(seed):
    with pytest.raises(TypeError, match="seed must be an int"):
        probes.resolve_seed(seed)


def test_unknown_kinds_and_complex_roots_for_real_vectors_are_refused():
    space = mf.space_like(np.zeros(1), 4)
    with pytest.raises(ValueError, match="kind must be one of"):
        space.probes(1, seed=0, kind="uniform")
    with pytest.raises(ValueError, match="'z4' has complex entries"):
        space.probes(1, seed=0, kind="z4")
