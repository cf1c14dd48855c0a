"""Configuration of the documentation.

Every page is executed, every link is checked, and the site loads nothing from other servers.
The build fails on a cell that raises (assertions included), on a warning, on a formula that
cannot be converted, and on a broken link.
"""

import hashlib
import os
import sys
from pathlib import Path

import matfree

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_support"))

# The matrices on the pages are small; there, synchronizing threads costs ten times the arithmetic.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The kernels that execute the pages import modules that pages share with the tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE / "_support"), *filter(None, [os.environ.get("PYTHONPATH")])]
)

project = "matfree"
author = "matfree contributors"
copyright = "2026, matfree contributors"
release = matfree.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "docstrings",
    "mathml",
    "offline",
    "outputs",
    "links",
    "notebooks",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types in docstrings are prose
suppress_warnings = ["ref.python"]  # a name in prose may belong to several classes

html_theme = "furo"
html_title = f"matfree {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Buttons that copy code and commands, without prompts; printed outputs have none.
copybutton_selector = ", ".join(
    f"div.{name} pre"
    for name in (
        "cell_input",
        "highlight-console",
        "highlight-bibtex",
        "doctest",
        "highlight-python",
    )
)
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["dollarmath", "attrs_inline", "attrs_block", "deflist"]
myst_heading_anchors = 3


def _code_version():
    """Checksum of the library; a page is executed again when the library or the page changes."""
    checksum = hashlib.sha256(sys.version.encode())
    pins = [ROOT / ".ci/constraints.txt"]
    for path in [
        *pins,
        *sorted(ROOT.glob("matfree/**/*.py")),
        *sorted(ROOT.glob("adapters/**/*.py")),
        *sorted(HERE.glob("_support/*.py")),
    ]:
        checksum.update(path.read_bytes())
    return checksum.hexdigest()[:12]


nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "executed" / _code_version())
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = "warn"  # a page declares the warnings that it expects

autodoc_typehints = "none"  # the docstrings state types, shapes and units
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_custom_sections = ["Cost"]  # matvecs and memory
