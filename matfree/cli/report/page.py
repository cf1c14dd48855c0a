"""A report as one HTML file that needs nothing else: no script, no request, no font."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files

import matfree
from matfree.cli.report import cells
from matfree.cli.report.document import Chapter, Figure, Report, Section, Table

Pictures = Mapping[str, Mapping[str, bytes]]
"""PNG bytes by figure name and theme ("light", "dark")."""


def render(report: Report, pictures: Pictures) -> str:
    """The whole page."""
    style = files("matfree.cli.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(report.title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{title}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            "<main>",
            _header(report),
            *(_chapter(j, chapter, pictures) for j, chapter in enumerate(report.chapters, 1)),
            _reproduction(report),
            "</main>",
            "</body>",
            "</html>\n",
        ]
    )


def _header(report: Report) -> str:
    count = sum(finding.num_matvecs or 0 for c in report.chapters for finding in c.findings)
    lead = (
        f"matfree {matfree.__version__}, seed {report.seed}, "
        f"{count:,} products for what the summary lists, {report.seconds:.0f} s"
    )
    contents = "".join(
        f'<li><a href="#{escape(chapter.key)}">{escape(chapter.title)}</a></li>'
        for chapter in report.chapters
    )
    summaries = "".join(
        _table(cells.summary(chapter.findings, chapter.title), "stacked")
        for chapter in report.chapters
    )
    notes = "".join(f'<p class="note">{_inline(note)}</p>' for note in report.notes)
    return (
        f'<header><h1>{escape(report.title)}</h1><p class="lead">{lead}</p>{notes}</header>\n'
        f"<nav><ol>{contents}<li><a href='#again'>Repeat it</a></li></ol></nav>\n"
        f"<section><h2>Summary</h2>{summaries}{_reading()}</section>"
    )


def _reading() -> str:
    return (
        "<p class='small'>A 95 % interval holds the true value in 95 of 100 runs with different "
        "seeds. A certain one always does: it comes from the residual, and says that an "
        "eigenvalue lies in it. A product is the matrix applied to one vector.</p>"
    )


def _chapter(index: int, chapter: Chapter, pictures: Pictures) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in chapter.facts
    )
    sections = "\n".join(
        _section(f"{index}.{j}", section, pictures) for j, section in enumerate(chapter.sections, 1)
    )
    return (
        f'<section id="{escape(chapter.key)}"><h2>{index}. {escape(chapter.title)}</h2>'
        f"{_paragraphs(chapter.text)}<dl>{facts}</dl>\n{sections}</section>"
    )


def _section(index: str, section: Section, pictures: Pictures) -> str:
    tables = "".join(map(_table, section.tables))
    figures = "".join(_figure(figure, pictures) for figure in section.figures)
    code = f"<pre><code>{escape(section.code)}</code></pre>" if section.code else ""
    return (
        f"<article><h3>{index} {escape(section.title)}</h3>{_paragraphs(section.text)}{code}"
        f'<div class="evidence"><div>{tables}</div><div>{figures}</div></div></article>'
    )


def _figure(figure: Figure, pictures: Pictures) -> str:
    light, dark = (_data(pictures[figure.name][theme]) for theme in ("light", "dark"))
    return (
        "<figure><picture>"
        f'<source srcset="{dark}" media="screen and (prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{escape(figure.title)}"></picture>'
        f"<figcaption><b>{escape(figure.title)}.</b> {_inline(figure.caption)}</figcaption>"
        "</figure>"
    )


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _table(table: Table, style: str = "") -> str:
    """A table; in the style "stacked" its rows become cards where the screen is narrow."""
    kinds = ["number" if cells.is_numeric(table, j) else "text" for j in range(len(table.columns))]
    titles = [escape(column.title) for column in table.columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{title}</th>'
        for title, kind in zip(titles, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(map(_cell, row, kinds, titles)) + "</tr>" for row in cells.rendered(table)
    )
    return (
        f'<div class="table {style}"><p class="caption">{_inline(table.caption)}</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div></div>"
    )


def _cell(text: str, kind: str, title: str) -> str:
    verdict = {"yes": " yes", "NO": " no"}.get(text, "")
    return f'<td class="{kind}{verdict}" data-title="{title}">{escape(text)}</td>'


def _reproduction(report: Report) -> str:
    environment = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in report.environment.items()
    )
    code = "\n\n".join(_script(chapter) for chapter in report.chapters if chapter.code)
    script = f"<p>The same from Python:</p><pre><code>{escape(code)}</code></pre>" if code else ""
    return (
        '<section id="again"><h2>Repeat it</h2>'
        f"<pre><code>{escape(report.command)}</code></pre>"
        "<p>One seed gives the same random vectors on every machine, backend and device; the "
        "numbers then agree up to rounding. Beside this page lie the pictures as PNG, all numbers "
        "in <code>results.json</code>, and every result in full as <code>.npz</code>, for "
        f"<code>matfree.load</code>.</p>{script}<dl>{environment}</dl></section>"
    )


def _script(chapter: Chapter) -> str:
    lines = [section.code for section in chapter.sections if section.code]
    return "\n".join([f"# {chapter.title}", chapter.code, *lines])


def _paragraphs(text: tuple[str, ...]) -> str:
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in text)


def _inline(text: str) -> str:
    """Escaped text, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
