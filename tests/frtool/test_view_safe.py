"""Nothing that a terminal would obey passes the gate."""

from __future__ import annotations

import json
import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.view.safe import safe_json, safe_line, safe_text

ANY_TEXT = st.text(st.characters(), max_size=200)


def obeyed(text: str, allowed: str = "") -> list[str]:
    """Characters that move a cursor, change a style, reorder text or hide it."""
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    marks = set("\u061c\u200b\u200e\u200f\ufeff") | {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2060, 0x2070))}
    tags = range(0xE0000, 0xE1000)
    return [c for c in text if c not in allowed and (unicodedata.category(c) in kinds or c in marks or ord(c) in tags)]


@given(ANY_TEXT)
def test_a_label_is_one_line_of_inert_characters(text):
    line = safe_line(text)
    assert obeyed(line) == []
    assert line.splitlines() in ([], [line])


@given(ANY_TEXT)
def test_text_keeps_lines_and_tabs_and_nothing_else_that_acts(text):
    assert obeyed(safe_text(text), allowed="\n\t") == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m", id="ansi-colour"),
        pytest.param("\x1b]8;;http://evil\x07x", "\\x1b]8;;http://evil\\x07x", id="osc-link"),
        pytest.param("\x9b2J", "\\x9b2J", id="c1-csi"),
        pytest.param("a\u202eb", "a\\u202eb", id="bidi-override"),
        pytest.param("a\u2066b\u2069", "a\\u2066b\\u2069", id="bidi-isolate"),
        pytest.param("a\U000e0041", "a\\U000e0041", id="tag"),
        pytest.param("a\x00b\x7f", "a\\x00b\\x7f", id="nul-del"),
        pytest.param("one\ntwo\r\nthree\u2028four", "one⏎two⏎three⏎four", id="line-breaks"),
        pytest.param("\n\n step \n\n", "step", id="outer-blanks"),
        pytest.param("a\tb", "a b", id="tab"),
        pytest.param("[bold]x[/bold] :smile:", "[bold]x[/bold] :smile:", id="markup-is-text"),
        pytest.param("\ud800", "\\ud800", id="lone-surrogate"),
        pytest.param("e" + "\u0301" * 400, "e" + "\u0301" * 3, id="pile-of-marks"),
        pytest.param("नमस्ते 👩‍👩‍👧 日本", "नमस्ते 👩‍👩‍👧 日本", id="scripts-and-emoji-stay"),
    ],
)
def test_label_of(text, shown):
    assert safe_line(text) == shown


def test_a_long_label_is_cut():
    assert len(safe_line("x" * 10_000, limit=50)) == 51


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_is_inert_and_gives_the_value_back(value):
    text = safe_json(value)
    assert obeyed(text) == []
    assert json.loads(text) == value


def test_json_has_null_for_a_number_that_json_lacks():
    assert json.loads(safe_json({"a": [math.nan, -math.inf, 1.5]})) == {"a": [None, None, 1.5]}
