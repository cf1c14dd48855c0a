"""The documentation: every page executed, and a warning is an error."""

import matfree

project = "matfree"
author = "The matfree authors"
copyright = "2026, The matfree authors"
release = matfree.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"matfree {release}"

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "none"  # the docstrings say types, shapes and units
autodoc_class_signature = "separated"
numpydoc_show_class_members = False
suppress_warnings = ["ref.python"]
