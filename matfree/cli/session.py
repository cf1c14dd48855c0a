"""From the options to the report: what every command does around its own work."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy

import matfree
from matfree.cli.report import cells, folder
from matfree.cli.report.document import Notebook, Report
from matfree.cli.terminal import Terminal


def conduct(options: argparse.Namespace, title: str, work: Callable[[Notebook], None]) -> int:
    """Let ``work`` fill a notebook, print it meanwhile, and write the folder at the end.

    Parameters
    ----------
    options : parsed arguments
        ``seed``, ``out``, ``command_line``; ``json`` where the command has it.
    title : str
    work : function of a Notebook
        What it has finished when Ctrl-C comes is written all the same.

    Returns
    -------
    int, the exit status 0.
    """
    begin = time.perf_counter()
    command = shlex.join(options.command_line)
    if not any(word.startswith("--seed") for word in options.command_line):
        command += f" --seed {options.seed}"
    target = None if options.out is None else folder.prepare(options.out)
    as_json = getattr(options, "json", False)
    terminal = None if as_json else Terminal(sys.stdout)
    notebook = Notebook(terminal)

    def report() -> Report:
        return Report(
            title=title,
            command=command,
            seed=options.seed,
            environment=environment(),
            chapters=notebook.chapters,
            notes=notebook.notes,
            seconds=time.perf_counter() - begin,
        )

    try:
        with np.errstate(over="ignore", invalid="ignore"):  # products are checked anyway
            work(notebook)
    except KeyboardInterrupt:
        if target is not None and any(chapter.sections for chapter in notebook.chapters):
            notebook.note("Interrupted: sections are missing.")
            folder.write(report(), target)
        raise
    _finish(report(), terminal, target)
    return 0


def environment() -> dict[str, str]:
    """What a result may depend on, and when it was made."""
    return {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "matfree": matfree.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _finish(report: Report, terminal: Terminal | None, target: Path | None) -> None:
    page = None if target is None else folder.write(report, target)
    if terminal is None:
        print(folder.as_json(report), end="")
        return
    for chapter in report.chapters:
        terminal.table(cells.summary(chapter.findings, f"SUMMARY: {chapter.title}"))
    terminal.note("")
    terminal.note(f"Repeat it: {report.command}")
    if page is not None:
        terminal.note(f"Report: {page} ({report.seconds:.0f} s)")
