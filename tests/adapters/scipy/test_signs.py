"""Signs compiled by numba have the bits of the version for all array libraries."""

import numpy as np
import pytest

import matfree as mf
from matfree import probes
from matfree_scipy import compiled_signs

pytest.importorskip("numba", reason="numba is not installed")

XP = mf.space_like(np.zeros(1), 1).xp
DTYPES = [np.int8, np.float32, np.float64, np.complex64, np.complex128]
ROWS = [range(1), range(1000), range(3, 700), range(129, 131), range(2**40 + 3, 2**40 + 300)]


@pytest.fixture(autouse=True)
def compile_any_number(monkeypatch):
    monkeypatch.setattr(compiled_signs, "MIN_SIGNS", 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_the_compiled_signs_have_the_bits_of_the_array_version(dtype, rows):
    for columns, stream, seed in ((range(1), 0, 0), (range(5, 12), 2, 2**64 - 1)):
        where = {"rows": rows, "probes": columns, "stream": stream, "seed": seed}
        expected = probes.signs_by_words(XP, dtype, "cpu", **where)
        got = compiled_signs.rademacher_by_numba(XP, dtype, "cpu", **where)
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()


def test_the_bits_do_not_depend_on_the_threads(monkeypatch):
    where = {"rows": range(5, 5000), "probes": range(3), "stream": 1, "seed": 9}
    seen = []
    for threads in ("1", "3"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        seen.append(compiled_signs.rademacher_by_numba(XP, np.float64, "cpu", **where).tobytes())
    assert seen[0] == seen[1] == probes.signs_by_words(XP, np.float64, "cpu", **where).tobytes()


def test_too_large_probe_numbers_are_refused_with_the_same_message():
    where = {"rows": range(4), "probes": range(2**32, 2**32 + 1), "stream": 0, "seed": 0}
    for maker in (compiled_signs.rademacher_by_numba, probes.signs_by_words):
        with pytest.raises(ValueError, match="numbered from 0"):
            maker(XP, np.float64, "cpu", **where)


def test_few_signs_are_computed_by_the_array_version(monkeypatch):
    monkeypatch.setattr(compiled_signs, "MIN_SIGNS", 1 << 16)
    monkeypatch.setattr(
        compiled_signs, "over_chunks", None
    )  # so that the compiled version would fail
    where = {"rows": range(1000), "probes": range(2), "stream": 0, "seed": 0}
    assert compiled_signs.rademacher_by_numba(XP, np.float64, "cpu", **where).shape == (1000, 2)
