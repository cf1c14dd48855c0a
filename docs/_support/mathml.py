"""Render equations as MathML, which browsers display without scripts or network access.

TeX is converted when the site is built. A browser may lack a font with a mathematical table,
which scalable brackets and large operators need. The site therefore contains such a font,
reduced to the mathematical characters.
"""

import logging
from importlib.resources import files

import latex2mathml.converter
from docutils import nodes
from fontTools import subset
from sphinx.errors import ExtensionError

FONT = "STIXTwoMath"
_CHARACTERS = (
    *range(0x20, 0x180),  # Latin
    *range(0x300, 0x340),  # accents
    *range(0x370, 0x400),  # Greek
    *range(0x2000, 0x2070),  # spaces, dashes, primes
    *range(0x2100, 0x2400),  # letterlike, arrows, operators, brackets
    *range(0x27C0, 0x2800),
    *range(0x2900, 0x2B00),
    *range(0x1D400, 0x1D800),  # italic, bold, script and blackboard letters
)

_CORRECTIONS = (
    ("<mi>&#x000B1;</mi>", "<mo>&#x000B1;</mo>"),  # plus-minus is an operator
    # Without this strut, a root over a small letter is drawn below the line.
    ("<msqrt>", '<msqrt><mspace width="0" height="0.75em" depth="0.05em" />'),
)


def convert(tex, *, display):
    """Convert a formula from TeX to a MathML element."""
    try:
        element = latex2mathml.converter.convert(tex, display="block" if display else "inline")
    except Exception as cause:  # the converter's errors have no common base class
        raise ExtensionError(f"this formula cannot be converted: {tex!r} ({cause!r})") from cause
    if "\\" in element:  # the converter copies unknown commands
        raise ExtensionError(f"this formula contains an unknown command: {tex!r} gave {element}")
    for written, meant in _CORRECTIONS:
        element = element.replace(written, meant)
    return element


def write_font(app, error):
    """Add the mathematical characters of the font to the site."""
    if error is None and app.builder.format == "html":
        logging.getLogger("fontTools.subset").setLevel(logging.WARNING)
        options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True)
        font = subset.load_font(str(files("ziamath") / f"fonts/{FONT}-Regular.ttf"), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=_CHARACTERS)
        subsetter.subset(font)
        subset.save_font(font, str(app.outdir / f"_static/{FONT}.woff"), options)


def _visit_inline(translator, node):
    translator.body.append(convert(node.astext(), display=False))
    raise nodes.SkipNode


def _visit_block(translator, node):
    translator.body.append(f'<div class="equation">{convert(node.astext(), display=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer that conf.py selects."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.connect("build-finished", write_font, priority=100)  # before the links are checked
    return {"parallel_read_safe": True}
