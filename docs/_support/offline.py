"""matplotlib's animations without the icons that they fetch from a server.

Pages write ``HTML(animation.to_jshtml())`` as anybody would, in a notebook or here.
"""

import re

_STYLESHEET = re.compile(r'<link rel="stylesheet"\s+href="https://[^"]*font-awesome[^"]*">')
_ICON = re.compile(r'<i class="fa (fa-[a-z-]+(?: fa-flip-horizontal)?)"></i>')
_SIGNS = {
    "fa-minus": "−",
    "fa-fast-backward": "|◀",
    "fa-step-backward": "◁",
    "fa-play fa-flip-horizontal": "◀",
    "fa-pause": "❚❚",
    "fa-play": "▶",
    "fa-step-forward": "▷",
    "fa-fast-forward": "▶|",
    "fa-plus": "+",
}


def without_icons(app, pagename, templatename, context, doctree):
    """Replace the icons of the player by signs."""
    if 'class="fa fa-' in context.get("body", ""):
        body = _STYLESHEET.sub("", context["body"])
        context["body"] = _ICON.sub(lambda match: _SIGNS[match[1]], body)


def setup(app):
    """Look at each page before it is written."""
    app.connect("html-page-context", without_icons)
    return {"parallel_read_safe": True}
