"""The one gate between text that a model or a user wrote and a terminal or a file.

Nothing that a terminal would obey gets through: control bytes (so no ANSI or OSC sequence), bidirectional marks,
invisible format characters, tag characters and lone surrogates come out as visible escapes such as `\\x1b`.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0, DEL, C1; soft hyphen; Arabic letter mark, zero-width space, bidi marks, embeddings, overrides and isolates; line
# and paragraph separators; word joiner and friends; byte-order mark; interlinear annotation; noncharacters; lone
# surrogates; tags and the variation selectors that text is smuggled in. Joiners U+200C and U+200D stay: scripts and
# emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_UNSAFE_IN_LINES = re.compile(_UNSAFE.pattern.replace("[\x00-\x1f", "[\x00-\x08\x0b-\x1f", 1))
# A pile of combining marks has no width, so no width limit would ever cut it.
_MARK = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_MARK_PILE = re.compile(f"({_MARK}{{3}}){_MARK}+")
_NEWLINES = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_line(text: str, limit: int = 500) -> str:
    """`text` as one line for a label: line breaks become `⏎`, tabs spaces, outer blanks go, at most about `limit`
    characters stay."""
    cut = text.strip()
    if len(cut) > limit:
        cut = cut[:limit] + "…"
    line = _NEWLINES.sub("⏎", cut).replace("\t", " ")
    return _MARK_PILE.sub(r"\1", _UNSAFE.sub(_escape, line))


def safe_text(text: str) -> str:
    """`text` with its lines and tabs, everything else that is unsafe escaped."""
    lines = text.replace("\r\n", "\n")
    return _MARK_PILE.sub(r"\1", _UNSAFE_IN_LINES.sub(_escape, lines))


def safe_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as valid JSON on any output: unsafe characters are \\u-escaped, and a number that JSON lacks is null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    # Newlines are the layout that `indent` makes; inside strings json has escaped them already.
    return _UNSAFE_IN_LINES.sub(lambda m: json.dumps(m.group())[1:-1], text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
