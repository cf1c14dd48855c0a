"""Benchmarks, printed and written to docs/benchmarks.md: ``make bench``.

``make bench ONLY="overhead memory"`` runs some of them and leaves the page's other sections
as they are. What compares with other libraries needs them installed: ``make bench-peers``.
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
    "densities",
    "memory",
    "slabs",
    "networks",
    "products",
    "processes",
    "scale",
    "sharded",
    "csr",
    "peers",
    "device",
)
ELSEWHERE = ("peers", "device")  # in an environment of its own; where there is a GPU
PREFACE = """# Benchmarks

Times are measured side by side in one process, in turn, and the least of several rounds is taken;
errors are medians over seeds, beside reference medians for the same problem and number of
products. `make bench` measures everything again and writes this page.
"""


def main(chosen):
    unknown = sorted(set(chosen) - set(SECTIONS))
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for name in chosen or [name for name in SECTIONS if name not in ELSEWHERE]:
        report = Report()
        report.say(f"Measured on: {machine()}.")
        importlib.import_module(name).run(report)
        if os.environ.get("MATFREE_BENCH") != "quick":  # tiny problems say nothing
            write(name, "\n".join(report.lines))


def write(name, text):
    """Put a section into the page, in its place."""
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
