"""CUDA kernels without a device: compiled and run as C, and compiled by CUDA's compiler."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest
import scipy.sparse as sp

import matfree as mf
from matfree_cupy import convert, csr
from matfree_cupy.convert import CupySparseOperator
from matfree_cupy.kernels import THREADS
from support.sparse import with_indices

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ("-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused", "-O1")


def for_the_host(source, library, options=()):
    """The kernels of a file as host functions, which loop over the grid."""
    if COMPILER is None:
        pytest.skip("no C compiler")
    command = [COMPILER, *FLAGS, *options, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run([*command, "-lm"], check=True)
    return ctypes.CDLL(str(library))


class HostKernels:
    """Launches of kernels on the host, with the interface of ``matfree_cupy.kernels.kernel``."""

    def __init__(self, folder):
        self.folder, self.libraries, self.launched = folder, {}, []

    def __call__(self, source, name, options=()):
        if options not in self.libraries:
            library = self.folder / f"{source.stem}-{len(self.libraries)}.so"
            self.libraries[options] = for_the_host(source, library, options)
        function = getattr(self.libraries[options], name)

        def launch(grid, block, arguments):
            assert block == (THREADS,)
            self.launched.append(name)
            function(ctypes.c_uint64(grid[0]), *map(_argument, arguments))

        return launch


def _argument(value):
    if isinstance(value, np.uint64):
        return ctypes.c_uint64(int(value))
    assert value.flags.c_contiguous
    return ctypes.c_void_p(value.ctypes.data)


def compile_with_nvrtc(source, options=()):
    """The PTX assembly of a file, for a device of compute capability 8.0."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as missing:
        pytest.skip(f"CUDA's compiler is not installed: {missing}")
    program = nvrtc.createProgram(source.read_text(encoding="utf-8"), source.name, (), ())
    nvrtc.compileProgram(program, ("--gpu-architecture=compute_80", *options))
    assembly = nvrtc.getPTX(program)
    return assembly if isinstance(assembly, str) else assembly.decode()


class Host:
    """SciPy matrices and NumPy arrays in place of CuPy's, with kernels on the host."""

    def __init__(self, kernels, monkeypatch):
        self.launched, self._allocated = kernels.launched, []
        self.launched.clear()
        monkeypatch.setattr(csr, "kernel", kernels)
        monkeypatch.setattr(csr.CudaCsrKernels, "_empty", self._empty)
        for module in (csr, convert):
            monkeypatch.setattr(module, "require_current", lambda device: None)

    def operator(self, A, index_type=np.int32):
        return CupySparseOperator(with_indices(A, index_type))

    def asarray(self, x):
        return np.array(x, order="K")

    def _empty(self, shape, dtype):
        """An array of NaN between two guard regions, which must not be written to."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 1024, 0xA5, dtype=np.uint8)
        self._allocated.append(memory)
        array = memory[512 : 512 + size].view(dtype).reshape(shape)
        array[...] = np.nan
        return array

    def finish(self):
        for memory in self._allocated:
            assert (memory[:512] == 0xA5).all()
            assert (memory[-512:] == 0xA5).all()


class Device:
    """CuPy matrices and arrays, with kernels on a CUDA device."""

    def __init__(self, monkeypatch):
        self.cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
        if not self.cupy.cuda.is_available():
            pytest.skip("no CUDA device")
        self.launched, kernel = [], csr.kernel

        def watched(source, name, options):
            self.launched.append(name)
            return kernel(source, name, options)

        monkeypatch.setattr(csr, "kernel", watched)

    def operator(self, A, index_type=np.int32):
        import cupyx.scipy.sparse

        A = sp.csr_array(A)
        parts = tuple(map(self.cupy.asarray, (A.data, A.indices, A.indptr)))
        there = cupyx.scipy.sparse.csr_matrix(parts, shape=A.shape)
        there.indices, there.indptr = (x.astype(index_type) for x in (there.indices, there.indptr))
        return mf.aslinearoperator(there)

    def asarray(self, x):
        return self.cupy.asarray(x)

    def finish(self):
        pass
