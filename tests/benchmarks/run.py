"""Run the benchmarks, print their tables and write them to docs/benchmarks.md: ``make bench``.

``make bench ONLY="overhead memory"`` runs some of them and leaves the other sections of the page
unchanged. Comparisons with other libraries need these libraries: ``make bench-peers``.
"""

import importlib
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]

from harness import Report, machine

PAGE = ROOT / "docs" / "benchmarks.md"
SECTIONS = (
    "overhead",
    "accuracy",
    "coverage",
    "densities",
    "memory",
    "slabs",
    "networks",
    "products",
    "processes",
    "scale",
    "sharded",
    "csr",
    "solving",
    "functions",
    "peers",
    "device",
)
SEPARATE = ("peers", "device")  # needs a separate environment; needs a GPU
PREFACE = """# Benchmarks

Times are measured in one process, with the alternatives in alternation, and are the minimum over
several rounds. Errors are medians over seeds, compared with reference medians for the same
problem and number of matvecs. `make bench` repeats all measurements and writes this page.
"""


def main(chosen):
    unknown = sorted(set(chosen) - set(SECTIONS))
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    for name in chosen or [name for name in SECTIONS if name not in SEPARATE]:
        report = Report()
        report.say(f"Measured on: {machine()}.")
        importlib.import_module(name).run(report)
        if os.environ.get("MATFREE_BENCH") != "quick":  # tiny problems are only a test
            write(name, "\n".join(report.lines))


def write(name, text):
    """Replace a section of the page."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    found = dict(re.findall(r"<!-- begin (\w+) -->\n(.*?)\n<!-- end \1 -->", page, re.DOTALL))
    found[name] = text
    sections = [
        f"<!-- begin {key} -->\n{found[key]}\n<!-- end {key} -->"
        for key in SECTIONS
        if key in found
    ]
    PAGE.write_text("\n\n".join([PREFACE, *sections]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
