"""A matrix larger than memory: results, speed compared with the disk, and peak memory.

``SLABS_GB=6 make bench ONLY=slabs`` sets the size of the file (2 by default, in float32 and in
the temporary folder), which is deleted afterwards. The process may allocate at most a third of
this size: RLIMIT_DATA counts allocated memory but not mapped files. The system drops the
file from its cache before every pass.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import matfree as mf
from matfree.operators.streamed import SLAB_BYTES

TOP = np.array([10.0, 8.0, 6.0, 5.0, 4.0])
ROUNDS = 3
VECTORS = 8 * (15 + 6)  # of the density, which stores the most vectors
CHUNK = 1 << 23  # bytes of a read, for the speed of the disk


def spectrum(n):
    """Five outliers above a uniform bulk."""
    return np.concatenate((TOP, np.linspace(0.0, 1.0, n - TOP.size)))


def build(path, n):
    """Write H D H with the reflection H = I - 2 v v^T: dense, with spectrum D."""
    D, v = spectrum(n), np.random.default_rng(0).standard_normal(n)
    v /= np.linalg.norm(v)
    Dv = D * v
    mixed = 4 * (v @ Dv) * v - 2 * Dv
    A = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, n))
    for begin in range(0, n, 256):
        rows = np.arange(begin, min(begin + 256, n))
        slab = np.outer(v[rows], mixed) - 2 * np.outer(Dv[rows], v)
        slab[rows - begin, rows] += D[rows]
        A[rows[0] : rows[-1] + 1] = slab
    A.flush()


def forget(path):
    """Drop the file from the system's cache, so that the disk is measured."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


class Cold(mf.Operator):
    """A SlabOperator that drops its file from the cache before every block of matvecs."""

    def __init__(self, inner, path):
        super().__init__(inner.space, inner.domain)
        self.inner, self.path, self.num_passes = inner, path, 0
        self.preferred_block_size = inner.preferred_block_size

    def _apply(self, X):
        forget(self.path)
        self.num_passes += 1
        return self.inner.matmat(X)


def read(path):
    """Read the whole file in large chunks."""
    forget(path)
    buffer = bytearray(CHUNK)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def seconds(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def work(path, limit):
    """Measure everything in a process with a memory limit, and print JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    before = peak()
    A = Cold(mf.SlabOperator(np.load(path, mmap_mode="r")), path)
    n = A.shape[0]
    one, many = A.domain.probes(1, seed=1), A.domain.probes(32, seed=1)
    times = np.array(
        [
            [seconds(read, path), seconds(A.matmat, one), seconds(A.matmat, many)]
            for _ in range(ROUNDS)
        ]
    )
    A.num_passes = 0
    found = {"before": before, "times": times.tolist()}
    trace = mf.trace(A, num_probes=64, seed=0)
    found["trace"] = [trace.value, *trace.interval(), A.num_passes]
    top = mf.eigsh(A, TOP.size, block_size=8, rtol=1e-3, verify=False, seed=0)
    found["top"] = [*np.sort(top.values)[::-1].tolist(), A.num_passes]
    density = mf.spectral_density(A, num_steps=15, num_probes=8, seed=0)
    points = np.array([0.25, 0.5, 0.75])
    found["band"] = [bound.tolist() for bound in density.cdf_band(points)]
    found["exact"] = [float(np.mean(spectrum(n) <= x)) for x in points]
    found |= {"passes": A.num_passes, "peak": peak(), "n": n}
    print(json.dumps(found))


def peak():
    """The peak memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's as well
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def run(report):
    size = float(os.environ.get("SLABS_GB", "2"))
    n, limit = int((size * 1e9 / 4) ** 0.5), int(size * 1e9 / 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "A.npy"
        build(path, n)
        command = [sys.executable, __file__, str(path), str(limit)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    found = json.loads(result.stdout)
    times = np.array(found["times"])
    disk, one, many = times.min(axis=0)
    exact = spectrum(n).sum()
    value, low, high, _ = found["trace"]
    error = np.abs(np.array(found["top"][:-1]) / TOP - 1).max()
    lowest, highest = np.array(found["band"])
    inside = np.sum((lowest <= found["exact"]) & (found["exact"] <= highest))
    slabs = found["before"] + 2 * SLAB_BYTES
    vectors = 4 * found["n"] * VECTORS
    report.table(
        f"A float32 matrix of {size:g} GB under a limit of {limit / 1e9:.2g} GB (RLIMIT_DATA)",
        ["quantity", "result", "expected"],
        [
            ("trace, 64 probes", f"{value:.6g} in [{low:.6g}, {high:.6g}]", f"{exact:.6g}"),
            ("top 5, largest relative error", f"{error:.1e}", "1e-3 or less"),
            ("distribution function within its 95 % band", f"{inside} of 3 points", "3"),
            ("width of the band", f"{(highest - lowest).max():.3f}", "-"),
            ("speed of reading the file", f"{size / disk:.2f} GB/s", "-"),
            ("a pass with 1 vector, relative to it", f"{disk / one:.2f}", "0.8 or more"),
            ("a pass with 32 vectors, relative to it", f"{disk / many:.2f}", "0.8 or more"),
            ("memory before", f"{found['before'] / 1e6:.0f} MB", "-"),
            (
                "peak memory",
                f"{found['peak'] / 1e6:.0f} MB",
                f"{slabs / 1e6:.0f} MB with 2 slabs, and {vectors / 1e6:.0f} MB of vectors",
            ),
            ("passes over the file", found["passes"], "-"),
        ],
    )
    rounds = ", ".join(f"{row[0] / row[1]:.2f} and {row[0] / row[2]:.2f}" for row in times)
    report.say(f"\nThe two ratios in each round were {rounds}.")


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
