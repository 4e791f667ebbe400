"""Pages that are one file each: a template with its style and script, data that nothing can break out of."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from typing import Any


def open_template(name: str, title: str, images: str = "data: blob:") -> tuple[bytes, bytes]:
    """Return what comes before and after the data of the page ``name``, with its style and script in it.

    ``title`` is any text. A content security policy lets the page run its own script, use its own style and show
    images from ``images`` (sources as in ``img-src``), and nothing else.
    """
    style, script = (_resource(f"page.{kind}") + _resource(f"{name}.{kind}") for kind in ("css", "js"))
    head, tail = _resource(f"{name}.html").split("<!-- data -->")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src {images}"
    # The title comes last, as it may hold anything.
    head = head.replace("%policy%", policy).replace("/* style */", style).replace("%title%", html.escape(title))
    return head.encode(), tail.replace("/* script */", script).encode()


def _resource(name: str) -> str:
    return (files("pixelsem.report") / name).read_text(encoding="utf-8")


def _hash(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"


def data_block(name: str, content: Any) -> bytes:
    """Return plain data as a script element that nothing in it can end."""
    text = json.dumps(content, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'.encode()


def data_uri(data: bytes, kind: str) -> str:
    """Return a picture's bytes (``png``, ``webp``, ``svg+xml``) as the address of an image."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
