"""Wrap the printed outputs of cells; error messages, for example, are long single lines."""

import textwrap

from docutils import nodes

COLUMNS = 100  # the line length of the code


def fold(text):
    """Break long lines between words and leave all others unchanged."""
    return "\n".join(
        piece
        for line in text.split("\n")
        for piece in (textwrap.wrap(line, COLUMNS) if len(line) > COLUMNS else [line])
    )


def rework(app, doctree):
    """Wrap the outputs of a page."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext()
        if "output" in block["classes"] and (folded := fold(text)) != text:
            block.rawsource = folded
            block.children = [nodes.Text(folded)]


def setup(app):
    """Process each page after it has been executed."""
    app.connect("doctree-read", rework)
    return {"parallel_read_safe": True}
