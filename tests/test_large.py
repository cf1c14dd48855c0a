"""64-bit row numbers: vectors longer than any memory, of which a process holds a few rows."""

import math

import numpy as np
import pytest
from support.backends import MAKERS, assert_close, tolerance
from support.sharded import Group, ShardedSpace

import matfree as mf
from matfree.arrays import to_host

MASK = 0xFFFFFFFF
BOUNDARIES = [2**31, 2**32, 2**39, 2**40, 2**52]
BEFORE, AFTER = 70, 90  # rows on either side of a boundary


def philox(counter, key):
    """Philox4x32-10 in Python integers, which cannot overflow."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def word(seed, stream, probe, index, per_counter):
    """The words of the counter that coordinate ``index`` belongs to."""
    block = index // per_counter
    return philox((block & MASK, block >> 32, probe, stream), (seed & MASK, seed >> 32))


def sign(seed, probe, i):
    words = word(seed, 0, probe, i, 128)
    return 1 - 2 * (words[i // 32 % 4] >> i % 32 & 1)


def gaussian(seed, probe, i):
    """The Box-Muller map: words 2 k and 2 k + 1 yield the entries 2 k and 2 k + 1."""
    words = word(seed, 1 << 16, probe, i, 4)
    first = i % 4 // 2 * 2
    u, v = ((words[first + j] + 0.5) * 2.0**-32 for j in (0, 1))
    turn = math.sin if i % 2 else math.cos
    return math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v)


class FewRows(mf.VectorSpace):
    """The rows of a vector around one boundary; all others do not exist and count as zero."""

    def __init__(self, backend, size, rows, dtype=np.float64):
        dtype = backend.asarray([0], dtype).dtype
        super().__init__(backend.xp, size, dtype, backend.device, rows=rows)

    def all_reduce(self, partial):
        return partial

    def all_gather_object(self, local):
        return [local()]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_signs_around_a_power_of_two_are_those_of_the_format(backend, boundary):
    space = FewRows(backend, 2 * boundary, range(boundary - BEFORE, boundary + AFTER))
    for seed, start in ((9, 0), (2**64 - 1, 2**32 - 2)):
        got = to_host(space.probes(2, seed=seed, start=start))
        expected = [[sign(seed, start + p, i) for p in (0, 1)] for i in space.rows]
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_gaussians_around_a_power_of_two_are_those_of_the_format(backend, boundary):
    space = FewRows(backend, 2 * boundary, range(boundary - BEFORE, boundary + AFTER))
    got = to_host(space.probes(2, seed=5, start=3, kind="gaussian"))
    expected = np.array([[gaussian(5, 3 + p, i) for p in (0, 1)] for i in space.rows])
    assert np.abs(got - expected).max() <= 1e-14  # a few units in the last place of 7


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_complex_probes_use_two_coordinates_per_entry(backend, boundary):
    rows = range(boundary - 3, boundary + 4)
    space = FewRows(backend, 2 * boundary, rows, np.complex128)
    got = to_host(space.probes(1, seed=5, kind="gaussian"))[:, 0]
    expected = [complex(gaussian(5, 0, 2 * i), gaussian(5, 0, 2 * i + 1)) for i in rows]
    assert_close(got, np.array(expected) * 0.5**0.5)
    z4 = to_host(space.probes(1, seed=5, kind="z4"))[:, 0]
    signs = [sign(5, 0, 2 * i) * (1j if sign(5, 0, 2 * i + 1) < 0 else 1) for i in rows]
    assert np.array_equal(z4, signs)


@pytest.mark.parametrize("start", [2**32 - 1, 2**32, -1])
def test_a_probe_number_beyond_its_word_is_refused(start):
    with pytest.raises(ValueError, match=r"probes are numbered from 0 to 2\*\*32 - 1"):
        mf.space_like(np.zeros(1), 4).probes(2, seed=0, start=start)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_unit_vectors_of_a_long_space_have_their_one_in_the_right_row(backend, boundary):
    space = FewRows(backend, 2 * boundary, range(boundary - 3, boundary + 4))
    E = to_host(space.unit_vectors(range(boundary - 1, boundary + 2)))
    assert np.array_equal(E, np.eye(7)[:, 2:5])
    assert not to_host(space.unit_vectors(range(3))).any()  # these rows agree in the low 31 bits


def test_sums_cover_local_rows_and_spheres_use_the_whole_length(backend, dtype):
    n = 2**40
    space = FewRows(backend, n, range(n - 64, n), dtype)
    W = space.probes(3, seed=1)
    assert_close(to_host(space.norms(W)), np.full(3, 8.0), dtype)
    assert_close(to_host(space.gram(W, W)), to_host(W).conj().T @ to_host(W), dtype, scale=64)
    S = to_host(space.probes(2, seed=1, kind="sphere"))
    norms = np.linalg.norm(S.astype(np.complex128), axis=0)
    assert np.abs(norms / 2.0**20 - 1).max() <= tolerance(
        dtype
    )  # sqrt(n), although only 64 rows exist


def test_shards_of_a_long_space_hold_the_probes_of_their_coordinates(backend):
    group = Group((2**31, 5, 2**40 - 2**31 - 5))
    middle = ShardedSpace(group, 1, backend, backend.asarray([0.0]).dtype)
    assert (middle.size, middle.rows) == (2**40, range(2**31, 2**31 + 5))
    got = to_host(middle.probes(1, seed=2))[:, 0]
    assert got.tolist() == [sign(2, 0, i) for i in middle.rows]


def test_a_trace_over_a_few_rows_of_a_long_space_is_the_sum_over_them():
    """The operator has n = 2^40 and is zero except in the local rows."""
    n = 2**40
    rows = range(2**32 - 8, 2**32 + 8)
    held = FewRows(MAKERS["numpy"](), n, rows)
    diagonal = np.arange(1.0, 17.0)[:, None]
    A = mf.FunctionOperator(lambda x: diagonal[:, 0] * x, space=held, matmat=lambda X: diagonal * X)
    assert mf.trace(A, num_probes=3, seed=0).value == pytest.approx(136.0)
    T = mf.lanczos(A, held.probes(1, seed=0), 16)
    assert_close(T.quadrature()[0], np.arange(1.0, 17.0), scale=16)
    assert mf.block_traces(
        A, {"low": slice(0, 2**32), "high": slice(2**32, n)}, num_probes=3, seed=0
    )["high"].value == pytest.approx(sum(range(9, 17)))
