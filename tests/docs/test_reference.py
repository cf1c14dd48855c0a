"""The reference has one entry for every public name."""

import importlib
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
