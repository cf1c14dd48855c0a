"""Every Python example in the README runs, and every command that it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def _has_cuda_device() -> bool:
    cupy = pytest.importorskip("cupy", reason="the GPU example needs CuPy")
    return bool(cupy.cuda.is_available())


@pytest.mark.parametrize("code", EXAMPLES, ids=["matrix", "gpu array", "network"])
def test_readme_example_runs(code: str) -> None:
    if "cupy" in code and not _has_cuda_device():
        pytest.skip("the GPU example needs a CUDA device")
    if "torch" in code:
        pytest.importorskip("torch", reason="the network example needs torch")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example prints a result"


def test_readme_examples_are_three_and_about_ten_lines() -> None:
    assert len(EXAMPLES) == 3
    for code in EXAMPLES:
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 12


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets


def test_make_help_describes_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    assert targets == set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))


def test_commands_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"^matfree ([a-z]+)", README, flags=re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "matfree", "--help"], capture_output=True, text=True, check=True
    )
    absent = {command for command in named if command not in done.stdout}
    if "network" in absent:  # registered by the torch adapter
        pytest.importorskip("torch", reason="the network command needs torch")
    assert not absent
