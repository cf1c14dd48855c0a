"""Run the work of a command, print its report, and write the folder."""

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
from matfree.cli.options import TOLERANCE_MISSED
from matfree.cli.report import cells, folder
from matfree.cli.report.document import Report, ReportBuilder
from matfree.cli.terminal import Terminal


def run_and_report(
    options: argparse.Namespace, title: str, work: Callable[[ReportBuilder], None]
) -> int:
    """Run ``work``, print its sections as they are added, and write the folder at the end.

    Parameters
    ----------
    options : parsed arguments
        They have ``seed``, ``out`` and ``command_line``, and may have ``json``.
    title : str
    work : function of a ReportBuilder
        The sections that it added before an interruption by Ctrl-C are written as well.

    Returns
    -------
    The exit status: 0, or ``options.TOLERANCE_MISSED`` if the tolerance ``rtol`` among the
    parsed arguments was not met.
    """
    begin = time.perf_counter()
    command = shlex.join(options.command_line)
    # A seed that was drawn at random is added, so that the command line repeats the run.
    if not any(word.startswith("--seed") for word in options.command_line):
        command += f" --seed {options.seed}"
    # The folder is created first: an unwritable one must not cost a long computation.
    target = None if options.out is None else folder.prepare_folder(options.out)
    as_json = getattr(options, "json", False)
    terminal = None if as_json else Terminal(sys.stdout)
    builder = ReportBuilder(terminal)

    def report() -> Report:
        return Report(
            title=title,
            command=command,
            seed=options.seed,
            environment=environment(),
            chapters=builder.chapters,
            notes=builder.notes,
            seconds=time.perf_counter() - begin,
        )

    try:
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # matvecs are checked for NaN and infinity
            work(builder)
    except KeyboardInterrupt:
        if target is not None and any(chapter.sections for chapter in builder.chapters):
            builder.add_note("Interrupted: sections are missing.")
            folder.write_report(report(), target)
        raise
    _finish(report(), terminal, target)
    return 0 if getattr(options, "rtol", None) is None else _status(builder)


def _status(builder: ReportBuilder) -> int:
    """The exit status if there is a tolerance, with a line on stderr if it was not met."""
    sections = (section for chapter in builder.chapters for section in chapter.sections)
    missed = [section.key for section in sections if section.values.get("converged") is False]
    if not missed:
        return 0
    print(
        f"matfree: the tolerance was not met for: {', '.join(missed)}; raise --max-matvecs or "
        "--rtol",
        file=sys.stderr,
    )
    return TOLERANCE_MISSED


def environment() -> dict[str, str]:
    """The versions and the machine that a result may depend on, and the date."""
    return {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "matfree": matfree.__version__,
        "Python": platform.python_version(),
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _finish(report: Report, terminal: Terminal | None, target: Path | None) -> None:
    page = None if target is None else folder.write_report(report, target)
    if terminal is None:
        print(folder.as_json(report), end="")
        return
    for chapter in report.chapters:
        terminal.table(cells.summary(chapter.findings, f"SUMMARY: {chapter.title}"))
    terminal.note("")
    terminal.note(f"To repeat this run: {report.command}")
    if page is not None:
        terminal.note(f"Report: {page} ({report.seconds:.0f} s)")
