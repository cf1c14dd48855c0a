"""Looks at every page of the built site: links lead somewhere, and nothing is fetched.

A link inside the site must name a file that exists and an anchor that its page has. A
stylesheet, script, font or picture must come with the site. Links for people to click may
leave it; they are not followed.
"""

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_STYLE_URL = re.compile(r"""(?:url\(|@import)\s*["']?([^"')]+)""")


class Page(HTMLParser):
    """The anchors of one page, the links on it and the files that it loads."""

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links, self.loaded = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Read one element's attributes."""
        values = dict(attrs)
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "link" and values.get("href"):
            self.loaded.append(values["href"])
        if tag in ("script", "img", "iframe", "source", "video", "object"):
            self.loaded.extend(values[key] for key in ("src", "data") if values.get(key))
        if values.get("style"):
            self.loaded.extend(_STYLE_URL.findall(values["style"]))


def problems(folder):
    """What is wrong with the links of the pages under a folder, as sentences."""
    folder = Path(folder).resolve()
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for link in page.links:
            found.extend(f"{where}: {fault}" for fault in _faults(link, path, pages))
        found.extend(f"{where}: {fault}" for link in page.loaded for fault in _loads(link, path))
    for path in sorted(folder.rglob("*.css")):
        links = _STYLE_URL.findall(path.read_text(encoding="utf-8"))
        found.extend(
            f"{path.relative_to(folder)}: {f}" for link in links for f in _loads(link, path)
        )
    return found


def _faults(link, origin, pages):
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return
    target = (origin.parent / unquote(parts.path)).resolve() if parts.path else origin
    if not target.is_file():
        yield f"{link} leads to no file"
    elif target in pages and unquote(parts.fragment) not in pages[target].anchors | {""}:
        yield f"{link} leads to no anchor of its page"


def _loads(link, origin):
    parts = urlsplit(link)
    if parts.scheme == "data":
        return
    if parts.scheme or parts.netloc:
        yield f"{link} is fetched from elsewhere; bring it with the site"
    elif parts.path and not (origin.parent / unquote(parts.path)).is_file():
        yield f"{link} is loaded and does not exist"


def check(app, error):
    """Refuse a site with a problem."""
    if error is None and app.builder.format == "html":
        for problem in problems(app.outdir):
            print(f"ERROR: {problem}", file=sys.stderr)
            app.statuscode = 1


def renew_sources(app):
    """Forget the listings of an earlier build: Sphinx keeps them without their new anchors."""
    shutil.rmtree(app.outdir / "_modules", ignore_errors=True)


def setup(app):
    """Look when all is written."""
    app.connect("builder-inited", renew_sources)
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True}
