"""Compare libraries on the same work in one process: error, time, memory, roofline."""

import contextlib
import ctypes
import gc
import importlib
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import threadpoolctl
from roofline import Work

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
HEADER = ["library", "call", "error", "matvecs", "time (s)", "/ best of ours", "CPU (s)"]
HEADER += ["peak memory (MB)", "moved (GB)", "of copying", "computed (GFlop)", "of multiplying"]


class Answer(NamedTuple):
    """The result of a library and the number of matvecs that it used."""

    value: Any
    matvecs: int


@dataclass(frozen=True)
class Entry:
    """The work as it is done by one library.

    Parameters
    ----------
    library : name of its distribution
    call : the call, as shown in the table
    prepare : () -> (seed -> Answer); imports the library and is not timed
    work : matvecs -> Work, the minimum that the run moves and computes
    """

    library: str
    call: str
    prepare: Callable[[], Callable[[int], Answer]]
    work: Callable[[int], Work] | None = None


@dataclass
class Run:
    """The measurements of one entry over all rounds."""

    entry: Entry
    function: Callable[[int], Answer] | None = None
    failure: str = ""
    seconds: list = field(default_factory=list)
    cpu_seconds: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    peaks: list = field(default_factory=list)
    matvecs: list = field(default_factory=list)

    @property
    def ours(self):
        return self.entry.library == "matfree"


def contest(report, title, entries, error, machine, rounds=3):
    """Write a table with one row per entry, including failures, and return the runs."""
    runs = [_prepared(entry) for entry in entries]
    for seed in range(rounds):
        for run in runs:
            if run.function is not None:
                _round(run, error, seed)
    best = min((min(r.seconds) for r in runs if r.ours and r.seconds), default=None)
    report.table(title, HEADER, [_row(run, best, machine) for run in runs])
    return runs


def _prepared(entry):
    run = Run(entry)
    try:
        with _quiet():
            run.function = entry.prepare()
    except ImportError as missing:
        installed = _version(entry.library) is not None
        run.failure = f"cannot be imported: {missing}" if installed else "not installed"
    except Exception as failure:
        run.failure = _message(failure)
    return run


def _round(run, error, seed):
    """Time one run; the peak memory of the process is reset before it."""
    gc.collect()
    before = _memory_reset()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    try:
        with _quiet():
            answer = run.function(seed)
    except Exception as failure:
        run.failure, run.function = _message(failure), None
        return
    run.seconds.append(time.perf_counter() - begin)
    run.cpu_seconds.append(time.process_time() - cpu_begin)
    run.peaks.append(_memory("VmHWM") - before)
    run.matvecs.append(answer.matvecs)
    run.errors.append(error(answer.value))


def _row(run, best, machine):
    entry = run.entry
    if run.failure:
        return [entry.library, entry.call, run.failure, *[""] * (len(HEADER) - 3)]
    seconds, matvecs = min(run.seconds), int(np.median(run.matvecs))
    return [
        entry.library,
        entry.call,
        f"{np.sqrt(np.mean(np.square(run.errors))):.1e}",
        matvecs,
        f"{seconds:.3g}",
        "" if best is None else f"{seconds / best:.2f}",
        f"{min(run.cpu_seconds):.3g}",
        f"{max(run.peaks) / 1e6:.0f}" if RESET.exists() else "",
        *machine.compared(None if entry.work is None else entry.work(matvecs), seconds),
    ]


def versions(names):
    """The distributions with their versions, or the note that they are not installed."""
    return ", ".join(f"{name} {_version(name) or '(not installed)'}" for name in names)


def _version(name):
    try:
        return version("matfree-nla" if name == "matfree" else name)
    except PackageNotFoundError:
        return None


@contextlib.contextmanager
def threads(number):
    """Limit the threads of BLAS, OpenMP, torch and the compiled matrix products."""
    torch = _imported("torch")
    before = None if torch is None else torch.get_num_threads()
    try:
        if torch is not None:
            torch.set_num_threads(number)
        environment = mock.patch.dict(os.environ, NUMBA_NUM_THREADS=str(number))
        with threadpoolctl.threadpool_limits(number), environment:
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)


def _imported(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _message(failure):
    """Describe a failure in one line of a table."""
    text = " ".join(str(failure).split()).replace("|", "/")
    return f"fails: {type(failure).__name__}: {text[:100]}"


def _memory_reset():
    """Release free memory, reset the peak memory, and return the memory in use in bytes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        RESET.write_text("5")
    return _memory("VmRSS")


def _memory(name):
    """An entry of the status of the process in bytes; 0 if there is no such file."""
    if not STATUS.exists():
        return 0
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1])
