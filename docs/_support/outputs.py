"""What cells print, in lines that fit: an error message is one line of any length."""

import textwrap

from docutils import nodes

COLUMNS = 100  # as many as code has


def fold(text):
    """Long lines broken between words; all others as they are."""
    return "\n".join(
        piece
        for line in text.split("\n")
        for piece in (textwrap.wrap(line, COLUMNS) if len(line) > COLUMNS else [line])
    )


def rework(app, doctree):
    """Fold the outputs of a page."""
    for block in doctree.findall(nodes.literal_block):
        text = block.astext()
        if "output" in block["classes"] and (folded := fold(text)) != text:
            block.rawsource = folded
            block.children = [nodes.Text(folded)]


def setup(app):
    """Look at each page once it is executed."""
    app.connect("doctree-read", rework)
    return {"parallel_read_safe": True}
