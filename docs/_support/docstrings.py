"""Prepare docstrings, which are written to be read as plain text, for reStructuredText."""

import re

_LITERAL = re.compile(r"(``.*?``|:math:`.*?`)")
_DIRECTIVE = re.compile(r"\s*\.\. math::")


def _escape(line):
    """Escape | and ** outside of literals and inline formulas."""
    return "".join(
        piece if _LITERAL.fullmatch(piece) else piece.replace("|", r"\|").replace("**", r"\*\*")
        for piece in _LITERAL.split(line)
    )


def _indentation(line):
    return len(line) - len(line.lstrip())


def escape_mathematics(app, what, name, obj, options, lines):
    """Escape |x| and x**2 in prose, which reStructuredText would read as markup.

    Examples and the bodies of ``.. math::`` directives are left unchanged: in TeX, an escaped
    bar is a double bar.
    """
    directive = None  # the indentation of the directive whose body is being read
    for number, line in enumerate(lines):
        if line.strip() and directive is not None and _indentation(line) <= directive:
            directive = None
        if _DIRECTIVE.match(line):
            directive = _indentation(line)
        elif directive is None and not line.lstrip().startswith((">>>", "...")):
            lines[number] = _escape(line)


_COLON = "\ue000"  # a private-use character, which no text contains


def hide_colons(app, what, name, obj, options, lines):
    """Hide colons from napoleon, which reads the text before one as an attribute's type."""
    if what in ("attribute", "property") and lines and not _DIRECTIVE.match(lines[0]):
        lines[0] = lines[0].replace(":", _COLON)


def restore_colons(app, what, name, obj, options, lines):
    """Undo ``hide_colons``."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def setup(app):
    """Process docstrings before and after napoleon does."""
    app.connect("autodoc-process-docstring", escape_mathematics, priority=1)
    app.connect("autodoc-process-docstring", hide_colons, priority=2)
    app.connect("autodoc-process-docstring", restore_colons, priority=900)
    return {"parallel_read_safe": True}
