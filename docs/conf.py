"""The documentation: every page executed, every link followed, nothing fetched to read it.

A cell that fails, an assertion among them, a warning, a formula that cannot be drawn or a
link that leads nowhere ends the build.
"""

import hashlib
import os
import re
import sys
from pathlib import Path

import matfree

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_support"))

# Pages work on small matrices, where threads that wait for each other cost ten times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The kernels that execute pages find the modules that a page shares with the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE / "_support"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

project = "matfree"
author = "The matfree authors"
copyright = "2026, The matfree authors"
release = matfree.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "mathml",
    "offline",
    "outputs",
    "links",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types in docstrings are prose
suppress_warnings = ["ref.python"]  # and prose may hold a name that several classes have

html_theme = "furo"
html_title = f"matfree {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "attrs_inline", "attrs_block", "deflist"]
myst_heading_anchors = 3


def _code_version():
    """A page is executed again when the library changes, not only when the page does."""
    digest = hashlib.sha256(sys.version.encode())
    pins = [ROOT / ".ci/constraints.txt"]
    for path in [
        *pins,
        *sorted(ROOT.glob("matfree/**/*.py")),
        *sorted(ROOT.glob("adapters/**/*.py")),
        *sorted(HERE.glob("_support/*.py")),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed" / _code_version())
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "warn"  # a page that warns says so in its code

autodoc_typehints = "none"  # the docstrings say types, shapes and units
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_custom_sections = ["Cost"]  # every docstring says products and memory


def _escaped(text):
    return text.replace("|", r"\|").replace("**", r"\*\*")


def plain_mathematics(app, what, name, obj, options, lines):
    """Docstrings write |x| and a_ as a mathematician does, not as reStructuredText means them."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            pieces = re.split(r"(``.*?``)", line)
            lines[number] = "".join(
                piece if piece.startswith("``") else _escaped(piece) for piece in pieces
            )


_COLON = "\ue000"  # of no alphabet


def colons_hidden(app, what, name, obj, options, lines):
    """Napoleon takes what stands before a colon in an attribute's docstring for its type."""
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(":", _COLON)


def colons_shown(app, what, name, obj, options, lines):
    """Put back what was hidden."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def setup(app):
    """Docstrings are reworked before and after napoleon reads them."""
    app.connect("autodoc-process-docstring", plain_mathematics, priority=1)
    app.connect("autodoc-process-docstring", colons_hidden, priority=2)
    app.connect("autodoc-process-docstring", colons_shown, priority=900)
