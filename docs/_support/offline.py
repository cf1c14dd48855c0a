"""Make matplotlib's animations work offline, give them an alternative text, and shrink them.

matplotlib's player loads icons from a server. Pages contain ``HTML(animation.to_jshtml())``, as
any notebook does.
"""

import base64
import io
import re

from PIL import Image

LARGEST = 1_000_000
"""The largest number of bytes that the frames of one page may take."""

_COLOURS = 32  # enough for lines, points and anti-aliased letters
_STYLESHEET = re.compile(r'<link rel="stylesheet"\s+href="https://[^"]*font-awesome[^"]*">')
_ICON = re.compile(r'<i class="fa (fa-[a-z-]+(?: fa-flip-horizontal)?)"></i>')
_FRAME = re.compile(r'(frames\[\d+\] = "data:image/png;base64,)([^"]*)"')
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


def rework(app, pagename, templatename, context, doctree):
    """Replace the player's icons with characters, and reduce the colours of the frames."""
    body = context.get("body", "")
    if 'class="fa fa-' in body:
        body = _STYLESHEET.sub("", body)
        body = _ICON.sub(lambda match: _SIGNS[match[1]], body)
        body = body.replace('<img id="_anim_', '<img alt="Animation, described below" id="_anim_')
        body = _FRAME.sub(_smaller, body)
        size = sum(len(match[2]) for match in _FRAME.finditer(body))
        if size > LARGEST:
            raise ValueError(
                f"{pagename}: the frames take {size} bytes, more than {LARGEST}; use fewer frames."
            )
        context["body"] = body


def _smaller(match):
    image = Image.open(io.BytesIO(base64.b64decode(match[2].replace("\\\n", ""))))
    result = io.BytesIO()
    image.convert("RGB").quantize(_COLOURS).save(result, "png", optimize=True)
    return f'{match[1]}{base64.b64encode(result.getvalue()).decode()}"'


def setup(app):
    """Process each page before it is written."""
    app.connect("html-page-context", rework)
    return {"parallel_read_safe": True}
