"""The reference has one entry for every public name."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

REFERENCE = "\n".join(
    page.read_text(encoding="utf-8")
    for page in sorted((Path(__file__).parents[2] / "docs/reference").glob("*.md"))
)
ENTRIES = set(re.findall(r"^\.\. auto\w+:: (\w+)$", REFERENCE, flags=re.MULTILINE))
ENTRY_POINTS = {"adapt"}  # called by aslinearoperator only


@pytest.mark.parametrize(
    "package", ["matfree", "matfree_scipy", "matfree_cupy", "matfree_dask", "matfree_torch"]
)
def test_every_public_name_has_an_entry(package: str) -> None:
    if package == "matfree_torch":
        pytest.importorskip("torch", reason="importing matfree_torch needs torch")
    public = set(importlib.import_module(package).__all__)
    assert public - ENTRIES - ENTRY_POINTS == set()


def test_no_function_or_class_has_two_entries() -> None:
    names = re.findall(r"^\.\. auto\w+:: (\w+)$", REFERENCE, flags=re.MULTILINE)
    assert sorted(names) == sorted(ENTRIES)


@pytest.mark.parametrize("package", ["matfree", "matfree_torch"])
def test_every_public_function_is_listed_by_task(package: str) -> None:
    if package == "matfree_torch":
        pytest.importorskip("torch", reason="importing matfree_torch needs torch")
    module = importlib.import_module(package)
    functions = {
        name for name in module.__all__ if inspect.isfunction(getattr(module, name))
    } - ENTRY_POINTS
    by_task = (Path(__file__).parents[2] / "docs/reference/by-task.md").read_text(encoding="utf-8")
    assert {name for name in functions if f"`{package}.{name}`" not in by_task} == set()


def test_the_page_on_citing_agrees_with_the_citation_file() -> None:
    root = Path(__file__).parents[2]
    file = (root / "CITATION.cff").read_text(encoding="utf-8")
    stated = dict(
        re.findall(r'^(title|version|repository-code): "?([^"\n]*)"?$', file, re.MULTILINE)
    )
    page = (root / "docs/cite.md").read_text(encoding="utf-8")
    entry = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", page, flags=re.MULTILINE))
    assert entry["title"].replace("{", "").replace("}", "") == stated["title"]
    assert entry["version"] == stated["version"] == importlib.import_module("matfree").__version__
    assert entry["url"] == stated["repository-code"]
