"""The CUDA kernel for signs, compiled for the host from the same source, has the same bits."""

import ctypes

import numpy as np
import pytest
from support.kernels import compile_with_nvrtc, for_the_host
from test_probes import KNOWN_ANSWERS

import matfree as mf
from matfree import probes
from matfree_cupy import kernels as compiled
from matfree_cupy import signs

XP = mf.space_like(np.zeros(1), 1).xp
DTYPES = [np.int8, np.float32, np.float64, np.complex64, np.complex128]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return for_the_host(signs.SIGNS_SOURCE, tmp_path_factory.mktemp("kernels") / "signs.so")


def run(kernels, dtype, **where):
    """Run the kernel on the host with the launch parameters for a device."""
    name, arguments = signs.launch(dtype, **where)
    rows, columns = where["rows"], where["probes"]
    out = np.full((len(rows) + 2, len(columns)), 7, dtype=dtype)  # with a guard row at either end
    threads = signs.num_blocks(rows, columns) * compiled.THREADS
    first = ctypes.c_void_p(out[1:].ctypes.data)
    getattr(kernels, name)(
        ctypes.c_uint64(threads), first, *map(ctypes.c_uint64, map(int, arguments))
    )
    assert (out[[0, -1]] == 7).all()
    return out[1:-1]


ROWS = [range(1), range(128), range(1000), range(3, 700), range(129, 131), range(640, 1001)]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("rows", [*ROWS, range(2**40 + 3, 2**40 + 300)], ids=str)
def test_the_kernel_has_the_bits_of_the_array_version(kernels, dtype, rows):
    for columns, stream, seed in ((range(1), 0, 0), (range(5, 12), 2, 2**64 - 1)):
        where = {"rows": rows, "probes": columns, "stream": stream, "seed": seed}
        expected = probes.rademacher(XP, dtype, "cpu", **where)
        got = run(kernels, dtype, **where)
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()


def test_the_generator_gives_the_published_answers(kernels):
    word = kernels.random_word
    word.argtypes = [ctypes.c_uint64, *[ctypes.c_uint32] * 3, ctypes.c_uint64]
    word.restype = ctypes.c_uint32
    for (c0, c1, c2, c3), (k0, k1), answer in KNOWN_ANSWERS:
        got = [word((c1 << 32) + c0, lane, c2, c3, (k1 << 32) + k0) for lane in range(4)]
        assert tuple(got) == answer


def test_an_estimate_with_the_kernel_has_the_same_bits(kernels, monkeypatch):
    space = mf.space_like(np.zeros(1), 300)
    A = space.probes(300, seed=5, kind="gaussian")
    calls = []

    def maker(xp, dtype, device, **where):
        calls.append(where)
        return run(kernels, dtype, **where)

    def results():
        for matrix in (A, A.astype(np.float32)):
            yield mf.trace(matrix, num_probes=9, block_size=4, seed=3).samples
        yield mf.trace(A + 1j * A.T, num_probes=9, block_size=4, kind="z4", seed=3).samples

    here = list(results())
    with monkeypatch.context() as patch:
        patch.setitem(probes._SIGN_KERNELS, "numpy", maker)
        there = list(results())
    assert len(calls) == 9
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(a, b)


def test_the_adapter_registers_the_kernel_for_cupy():
    assert probes._SIGN_KERNELS["cupy"] is signs.rademacher_on_device


def test_cupys_compiler_accepts_the_kernels():
    """For the device's own architecture; no device is needed for that."""
    assembly = compile_with_nvrtc(signs.SIGNS_SOURCE)
    for name in {name for name, _ in signs._KERNELS.values()}:
        assert f".entry {name}(" in assembly
