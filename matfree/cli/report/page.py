"""A report as one self-contained HTML file, without scripts, requests or fonts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files

import matfree
from matfree.cli.report import cells
from matfree.cli.report.document import Chapter, Figure, Report, Section, Table

Images = Mapping[str, str]
"""``svg`` elements by figure name."""


_PADDING = "\u2008" + "\u2007" * 30  # as wide as a decimal point, and as a digit each


def render(report: Report, images: Images) -> str:
    """The HTML of the whole page."""
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
            _header_html(report),
            *(_chapter_html(j, chapter, images) for j, chapter in enumerate(report.chapters, 1)),
            _reproduction_html(report),
            "</main>",
            "</body>",
            "</html>\n",
        ]
    )


def _header_html(report: Report) -> str:
    count = sum(finding.num_matvecs or 0 for c in report.chapters for finding in c.findings)
    lead = (
        f"matfree {matfree.__version__}, seed {report.seed}, "
        f"{count:,} matvecs for the estimates of the summary, {report.seconds:.0f} s"
    )
    contents = "".join(
        f'<li><a href="#{escape(chapter.key)}">{escape(chapter.title)}</a></li>'
        for chapter in report.chapters
    )
    summaries = "".join(
        _table_html(cells.summary(chapter.findings, chapter.title), "stacked")
        for chapter in report.chapters
    )
    notes = "".join(f'<p class="note">{_inline(note)}</p>' for note in report.notes)
    return (
        f'<header><h1>{escape(report.title)}</h1><p class="lead">{lead}</p>{notes}</header>\n'
        f"<nav><ol>{contents}<li><a href='#again'>How to repeat this run</a></li></ol></nav>\n"
        f"<section><h2>Summary</h2>{summaries}{_explanation()}</section>"
    )


def _explanation() -> str:
    return (
        "<p class='small'>A 95 % interval contains the true value in 95 of 100 runs with "
        "different seeds. A guaranteed bound always holds; for an eigenvalue it is computed from "
        "the residual. The column "
        '"inside" says whether the interval contains the exact value. A matvec is the matrix '
        "applied to one vector.</p>"
    )


def _chapter_html(index: int, chapter: Chapter, images: Images) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in chapter.facts
    )
    sections = "\n".join(
        _section_html(f"{index}.{j}", section, images)
        for j, section in enumerate(chapter.sections, 1)
    )
    return (
        f'<section id="{escape(chapter.key)}"><h2>{index}. {escape(chapter.title)}</h2>'
        f"{_paragraphs(chapter.text)}<dl>{facts}</dl>\n{sections}</section>"
    )


def _section_html(index: str, section: Section, images: Images) -> str:
    tables = "".join(map(_table_html, section.tables))
    figures = "".join(_figure_html(figure, images) for figure in section.figures)
    code = f"<pre><code>{escape(section.code)}</code></pre>" if section.code else ""
    return (
        f"<article><h3>{index} {escape(section.title)}</h3>{_paragraphs(section.text)}{code}"
        f'<div class="evidence"><div>{tables}</div><div>{figures}</div></div></article>'
    )


def _figure_html(figure: Figure, images: Images) -> str:
    label = f'<svg role="img" aria-label="{escape(figure.alternative)}"'
    return (
        f"<figure>{images[figure.name].replace('<svg', label, 1)}"
        f"<figcaption><b>{escape(figure.title)}.</b> {_inline(figure.caption)}</figcaption>"
        "</figure>"
    )


def _table_html(table: Table, style: str = "") -> str:
    """A table; with the style "stacked", rows become cards on a narrow screen."""
    kinds = ["number" if cells.is_numeric(table, j) else "text" for j in range(len(table.columns))]
    titles = [escape(column.title) for column in table.columns]
    head = "".join(
        f'<th scope="col" class="{kind}">{title}</th>'
        for title, kind in zip(titles, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(map(_cell_html, row, kinds, titles, range(len(row)))) + "</tr>"
        for row in cells.rendered(table)
    )
    remarks = "".join(f'<p class="small">{_inline(text)}</p>' for text in cells.remarks(table))
    return (
        f'<div class="table {style}"><div class="scroll"><table>'
        f"<caption>{_inline(table.caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{remarks}</div>"
    )


def _cell_html(text: str, kind: str, title: str, index: int) -> str:
    """A cell; the first one of a row is its header."""
    verdict = {"yes": " yes", "NO": " no"}.get(text, "")
    element, scope = ("td", "") if index else ("th", ' scope="row"')
    padded = escape(text.rstrip()) + _PADDING[: len(text) - len(text.rstrip())]
    return f'<{element}{scope} class="{kind}{verdict}" data-title="{title}">{padded}</{element}>'


def _reproduction_html(report: Report) -> str:
    environment = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in report.environment.items()
    )
    code = "\n\n".join(_script(chapter) for chapter in report.chapters if chapter.code)
    script = (
        f"<p>The same computations in Python:</p><pre><code>{escape(code)}</code></pre>"
        if code
        else ""
    )
    return (
        '<section id="again"><h2>How to repeat this run</h2>'
        f"<pre><code>{escape(report.command)}</code></pre>"
        "<p>With the same seed, the random vectors are the same on every machine, backend and "
        "device, and the numbers agree up to rounding. The folder of this page also contains the "
        "figures as PNG files, all numbers in <code>results.json</code>, and every result as an "
        "<code>.npz</code> file that <code>matfree.load</code> reads.</p>"
        f"{script}<dl>{environment}</dl></section>"
    )


def _script(chapter: Chapter) -> str:
    lines = [section.code for section in chapter.sections if section.code]
    return "\n".join([f"# {chapter.title}", chapter.code, *lines])


def _paragraphs(text: tuple[str, ...]) -> str:
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in text)


def _inline(text: str) -> str:
    """The escaped text, with code elements for the parts between backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
