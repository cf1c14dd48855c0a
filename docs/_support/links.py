"""Check the links of every page of the built site.

A link inside the site must name an existing file and an existing anchor of its page. A
stylesheet, script, font or image must be part of the site. Links that readers click may lead
to other sites; they are not followed.
"""

import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_STYLE_URL = re.compile(r"""(?:url\(|@import)\s*["']?([^"')]+)""")


class Page(HTMLParser):
    """The anchors of a page, its links, and the files that it loads."""

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links, self.loaded = path, set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Record the anchors, links and loaded files of one element."""
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
    """Describe every broken link of the pages under a folder, one sentence each."""
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
        yield f"{link} names a file that does not exist"
    elif target in pages and unquote(parts.fragment) not in pages[target].anchors | {""}:
        yield f"{link} names an anchor that its page does not have"


def _loads(link, origin):
    parts = urlsplit(link)
    if parts.scheme == "data":
        return
    if parts.scheme or parts.netloc:
        yield f"{link} is loaded from another server; make it part of the site"
    elif parts.path and not (origin.parent / unquote(parts.path)).is_file():
        yield f"{link} is loaded but does not exist"


def check(app, error):
    """Fail the build if a link is broken."""
    if error is None and app.builder.format == "html":
        for problem in problems(app.outdir):
            print(f"ERROR: {problem}", file=sys.stderr)
            app.statuscode = 1


def renew_sources(app):
    """Delete the source listings of an earlier build, which Sphinx keeps without new anchors."""
    shutil.rmtree(app.outdir / "_modules", ignore_errors=True)


def setup(app):
    """Check the links after all pages have been written."""
    app.connect("builder-inited", renew_sources)
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True}
