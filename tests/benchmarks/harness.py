"""Timing of alternatives in one process, in alternation, on the same work."""

import os
import platform
import time
from dataclasses import dataclass, field

import numpy as np
import scipy


@dataclass
class Report:
    """Tables, which are printed and written to the documentation."""

    lines: list = field(default_factory=list)

    def say(self, text=""):
        print(text, flush=True)
        self.lines.append(text)

    def table(self, title, header, rows):
        self.say(f"\n## {title}\n")
        self.say("| " + " | ".join(header) + " |")
        self.say("|" + "---|" * len(header))
        for row in rows:
            self.say("| " + " | ".join(str(cell) for cell in row) + " |")


def machine():
    """A description of the machine and the versions of the libraries."""
    versions = [f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    versions.append(f"SciPy {scipy.__version__}")
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads; {', '.join(versions)}"


def side_by_side(*functions, rounds=7):
    """The minimum wall time of each function in seconds, over rounds of one call each."""
    times = [[] for _ in functions]
    for function in functions:
        function()  # warm up
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    return [min(taken) for taken in times]
