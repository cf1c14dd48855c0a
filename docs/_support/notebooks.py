"""Offer every executed page as a notebook without outputs."""

import json
from pathlib import Path

_LINK = '</h1>\n<p class="notebook"><a href="{}" download>Download this page as a notebook</a></p>'


def offer(app, pagename, templatename, context, doctree):
    """Write the notebook of a page next to it, and link to it below the title."""
    # MyST-NB writes the executed notebook of each page to this folder.
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{pagename}.ipynb"
    if doctree is None or not executed.exists():
        return
    notebook = json.loads(executed.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    target = Path(app.outdir) / f"{pagename}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    context["body"] = context["body"].replace("</h1>", _LINK.format(target.name), 1)


def setup(app):
    """Process each page before it is written."""
    app.connect("html-page-context", offer)
    return {"parallel_read_safe": True}
