"""The house rules that a program can check."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import matfree as mf

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("matfree/**/*.py"), *ROOT.glob("adapters/**/*.py")])
MAX_LINES = 300
MAX_FUNCTION_LINES = 45  # without the docstring


def _tracked_texts() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the project's files")
    endings = {".py", ".md", ".toml", ".txt", ".css", ".yml", ""}
    paths = (ROOT / name for name in listing.stdout.splitlines())
    return [path for path in paths if path.suffix in endings and path.is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions_fit_on_a_few_screens(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno - docstring.count("\n")
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"


def test_the_library_prints_nothing_outside_the_command_line() -> None:
    talkers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if "cli" not in path.parts
        and any(
            isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert talkers == []


def test_no_global_random_generator_is_touched() -> None:
    pattern = re.compile(r"np\.random\.(seed|rand|randn|normal|choice|uniform)\(|random\.seed\(")
    assert [p.name for p in SOURCES if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(work|home|Users|root)/\w")
    guilty = [p.name for p in _tracked_texts() if pattern.search(p.read_text(encoding="utf-8"))]
    assert guilty == []


@pytest.mark.parametrize("name", mf.__all__)
def test_every_public_name_is_documented_and_every_function_has_an_example(name: str) -> None:
    thing = getattr(mf, name)
    assert thing.__doc__, f"{name} has no docstring"
    if not isinstance(thing, type):
        assert ">>> " in thing.__doc__, f"{name} has no executed example"
