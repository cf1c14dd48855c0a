"""Mathematics in docstrings reaches the documentation unchanged."""

import importlib.util
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "docs/_support/docstrings.py"
SPEC = importlib.util.spec_from_file_location("documentation_docstrings", SOURCE)
docstrings = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(docstrings)


def escaped(*lines):
    result = list(lines)
    docstrings.escape_mathematics(None, "function", "f", None, None, result)
    return result


def test_bars_and_powers_in_prose_are_escaped():
    assert escaped("|x| and x**2") == [r"\|x\| and x\*\*2"]


def test_literals_inline_formulas_and_examples_are_unchanged():
    lines = ["``a | b``", ":math:`|x|`", ">>> 2**3 | 1", "... | 2"]
    assert escaped(*lines) == lines


def test_the_body_of_a_math_directive_is_unchanged_and_the_prose_after_it_is_not():
    lines = ["    .. math::", "", "        |x|", "", "        |y|", "", "    for |x| < 1"]
    assert escaped(*lines) == [*lines[:-1], r"    for \|x\| < 1"]


def test_colons_in_the_docstring_of_an_attribute_are_restored():
    lines = ["A ratio: measured over predicted."]
    docstrings.hide_colons(None, "attribute", "a", None, None, lines)
    assert ":" not in lines[0]
    docstrings.restore_colons(None, "attribute", "a", None, None, lines)
    assert lines == ["A ratio: measured over predicted."]
