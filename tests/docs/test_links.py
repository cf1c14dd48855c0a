"""The link checker of the documentation finds broken links and accepts intact sites."""

import importlib.util
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "docs/_support/links.py"
SPEC = importlib.util.spec_from_file_location("documentation_links", SOURCE)
links = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(links)


def _site(folder: Path, body: str, style: str = "") -> list[str]:
    (folder / "index.html").write_text(f"<body>{body}</body>", encoding="utf-8")
    (folder / "other.html").write_text('<h1 id="top">Other</h1>', encoding="utf-8")
    (folder / "site.css").write_text(style, encoding="utf-8")
    return links.problems(folder)


@pytest.mark.parametrize(
    "body",
    [
        '<a href="other.html">page</a>',
        '<a href="other.html#top">anchor</a>',
        '<b id="own"></b><a href="#own">own anchor</a>',
        '<a href="https://example.org/paper">a link to click</a>',
        '<img src="data:image/png;base64,AAAA">',
        '<link rel="stylesheet" href="site.css?digest=1">',
    ],
)
def test_an_intact_site_has_no_problems(tmp_path: Path, body: str) -> None:
    assert _site(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "style", "problem"),
    [
        ('<a href="absent.html">page</a>', "", "names a file that does not exist"),
        ('<a href="other.html#bottom">anchor</a>', "", "names an anchor"),
        ('<a href="#own">own anchor</a>', "", "names an anchor"),
        ('<script src="https://example.org/x.js"></script>', "", "loaded from another server"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "", "loaded from another server"),
        ('<img src="absent.png">', "", "does not exist"),
        ("", '@import "https://example.org/font.css";', "loaded from another server"),
        ("", "b { background: url(absent.png) }", "does not exist"),
    ],
)
def test_each_kind_of_broken_link_is_named(
    tmp_path: Path, body: str, style: str, problem: str
) -> None:
    found = _site(tmp_path, body, style)
    assert len(found) == 1
    assert problem in found[0]
