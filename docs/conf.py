"""The documentation: every page executed, and a warning is an error."""

import re

import matfree

project = "matfree"
author = "The matfree authors"
copyright = "2026, The matfree authors"
release = matfree.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"matfree {release}"

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "none"  # the docstrings say types, shapes and units
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_custom_sections = ["Cost"]  # every docstring says products and memory


def plain_mathematics(app, what, name, obj, options, lines):
    """Docstrings write |x| and a_ as a mathematician does, not as reStructuredText means them."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            pieces = re.split(r"(``.*?``)", line)
            lines[number] = "".join(
                piece if piece.startswith("``") else piece.replace("|", r"\|") for piece in pieces
            )


def setup(app):
    """Let Sphinx ask for it before the docstring is parsed."""
    app.connect("autodoc-process-docstring", plain_mathematics, priority=1)
