"""One HTML file that shows a search to anybody: nothing to install, nothing to load, no text that could run."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from frtool import __version__
from frtool.search.events import to_record
from frtool.view.report import reason_text
from frtool.view.safe import safe_json, safe_text

from .recorded import RecordedSearch, event_seconds

# What ends a script element or a comment, and what JavaScript takes for a line break.
_SCRIPT_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def html(search: RecordedSearch) -> str:
    """The page: the tree with a slider over its growth, the KV use, the path to the answer, a search over the text.

    The events stand in it as JSON that cannot leave its element; the script writes text nodes only, and a content
    security policy lets no other script run and nothing be fetched.
    """
    page, style, script = (_asset(name) for name in ("page.html", "page.css", "page.js"))
    return (
        page.replace("{{script-hash}}", _hash(script))
        .replace("{{style-hash}}", _hash(style))
        .replace("{{style}}", style)
        .replace("{{script}}", script)
        .replace("{{data}}", script_json(_data(search)))
    )


def script_json(value: Any) -> str:
    """JSON for a `<script type="application/json">` element."""
    return safe_json(value).translate(_SCRIPT_ESCAPES)


def _data(search: RecordedSearch) -> dict[str, Any]:
    ended = search.ended
    return {
        "frtool": __version__,
        "note": search.note,
        "reason": reason_text(ended.reason),
        "ended": _visible(to_record(ended)),
        "seconds": [round(s, 4) for s in event_seconds(search.events)],
        "events": [_visible(to_record(event)) for event in search.events],
    }


def _visible(value: Any) -> Any:
    """Every text in `value` with its control, bidirectional and invisible characters as visible escapes."""
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, dict):
        return {safe_text(str(k)): _visible(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(v) for v in value]
    return value


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
