"""One piece of work by several libraries, in turn in one process: error, time, memory, roofline."""

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
HEADER = ["library", "call", "error", "products", "time (s)", "/ best of ours", "CPU (s)"]
HEADER += ["peak memory (MB)", "moved (GB)", "of copying", "computed (GFlop)", "of multiplying"]


class Answer(NamedTuple):
    """What a library found, and how many products of the operator with a vector it took."""

    value: Any
    products: int


@dataclass(frozen=True)
class Entry:
    """One library's way to do the work.

    Parameters
    ----------
    library : the name of its distribution
    call : how it was asked, as the table shows it
    prepare : () -> (seed -> Answer); imports the library, and is not timed
    work : products -> Work, what the run must at least move and compute
    """

    library: str
    call: str
    prepare: Callable[[], Callable[[int], Answer]]
    work: Callable[[int], Work] | None = None


@dataclass
class Run:
    """What the rounds of one entry showed."""

    entry: Entry
    function: Callable[[int], Answer] | None = None
    failure: str = ""
    seconds: list = field(default_factory=list)
    cpu_seconds: list = field(default_factory=list)
    errors: list = field(default_factory=list)
    peaks: list = field(default_factory=list)
    products: list = field(default_factory=list)

    @property
    def ours(self):
        return self.entry.library == "matfree"


def contest(report, title, entries, error, machine, rounds=3):
    """A table of one row per entry; nobody's failure ends it. Returns the runs."""
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
        run.failure = _said(failure)
    return run


def _round(run, error, seed):
    """One run, timed; the process's high-water mark is set back before it."""
    gc.collect()
    before = _memory_reset()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    try:
        with _quiet():
            answer = run.function(seed)
    except Exception as failure:
        run.failure, run.function = _said(failure), None
        return
    run.seconds.append(time.perf_counter() - begin)
    run.cpu_seconds.append(time.process_time() - cpu_begin)
    run.peaks.append(_memory("VmHWM") - before)
    run.products.append(answer.products)
    run.errors.append(error(answer.value))


def _row(run, best, machine):
    entry = run.entry
    if run.failure:
        return [entry.library, entry.call, run.failure, *[""] * (len(HEADER) - 3)]
    seconds, products = min(run.seconds), int(np.median(run.products))
    return [
        entry.library,
        entry.call,
        f"{np.sqrt(np.mean(np.square(run.errors))):.1e}",
        products,
        f"{seconds:.3g}",
        "" if best is None else f"{seconds / best:.2f}",
        f"{min(run.cpu_seconds):.3g}",
        f"{max(run.peaks) / 1e6:.0f}" if RESET.exists() else "",
        *machine.compared(None if entry.work is None else entry.work(products), seconds),
    ]


def versions(names):
    """The distributions that are there, with their versions, and those that are not."""
    return ", ".join(f"{name} {_version(name) or '(not installed)'}" for name in names)


def _version(name):
    try:
        return version("matfree-nla" if name == "matfree" else name)
    except PackageNotFoundError:
        return None


@contextlib.contextmanager
def threads(number):
    """So many threads at most: BLAS, OpenMP, torch's own, and those of our compiled products."""
    torch = _imported("torch")
    before = None if torch is None else torch.get_num_threads()
    try:
        if torch is not None:
            torch.set_num_threads(number)
        told = mock.patch.dict(os.environ, NUMBA_NUM_THREADS=str(number))
        with threadpoolctl.threadpool_limits(number), told:
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


def _said(failure):
    """A failure in one line that fits a table."""
    text = " ".join(str(failure).split()).replace("|", "/")
    return f"fails: {type(failure).__name__}: {text[:100]}"


def _memory_reset():
    """Give back what is free and set the high-water mark to what is held, in bytes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        RESET.write_text("5")
    return _memory("VmRSS")


def _memory(name):
    """A line of the process's status in bytes; 0 where there is no such file."""
    if not STATUS.exists():
        return 0
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", STATUS.read_text())[1])
