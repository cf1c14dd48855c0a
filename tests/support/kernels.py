"""The CUDA kernels without a device: a C compiler runs them, CUDA's compiler only reads them."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from matfree_cupy.kernels import THREADS

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
FLAGS = ("-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused", "-O1")


def for_the_host(source, library, options=()):
    """The kernels of a file as functions: a loop over the same grid."""
    if COMPILER is None:
        pytest.skip("no C compiler")
    command = [COMPILER, *FLAGS, *options, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run([*command, "-lm"], check=True)
    return ctypes.CDLL(str(library))


class HostKernels:
    """What CuPy does with kernels, launch for launch."""

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


def read_by_cudas_compiler(source, options=()):
    """The assembly that it makes of a file, for a device of compute capability 8.0."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as missing:
        pytest.skip(f"CUDA's compiler is not installed: {missing}")
    program = nvrtc.createProgram(source.read_text(encoding="utf-8"), source.name, (), ())
    nvrtc.compileProgram(program, ("--gpu-architecture=compute_80", *options))
    assembly = nvrtc.getPTX(program)
    return assembly if isinstance(assembly, str) else assembly.decode()
