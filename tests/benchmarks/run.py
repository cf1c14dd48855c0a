"""Every benchmark, printed and written to docs/benchmarks.md: ``make bench``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import overhead
from harness import Report, machine

PREFACE = f"""# Benchmarks

Ratios are measured side by side in one process, in turn, and the least time of several rounds is
taken. `make bench` measures them again and writes this page.

Measured on: {machine()}."""


def main():
    report = Report()
    report.say(PREFACE)
    overhead.run(report)
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    page.write_text("\n".join(report.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
