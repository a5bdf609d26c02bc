"""Presets of reward models: what comes with frtool, and what a user's file may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.errors import UsageError
from frtool.scoring.preset import RewardPreset, built_in, find_preset, parse_preset, read_preset

GOOD: dict[str, Any] = {
    "layout": "text",
    "prompt": "{question} ",
    "step_tag": " #",
    "read_at": "tag",
    "head": "lm",
    "good_token": "+",
    "bad_token": "-",
}


def test_every_published_family_has_a_preset() -> None:
    assert set(built_in()) == {
        "math-shepherd", "rlhflow-deepseek", "rlhflow-mistral", "skywork-o1", "qwen2.5-math-prm", "rstar", "math-psa"
    }  # fmt: skip
    for name in built_in():
        assert find_preset(name, "any").name == name


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("Qwen/Qwen2.5-Math-PRM-7B", "qwen2.5-math-prm"),
        ("/models/math-shepherd-mistral-7b-prm", "math-shepherd"),
        ("RLHFlow/llama3.1-8b-prm-deepseek-data", "rlhflow-deepseek"),
    ],
)
def test_a_published_model_brings_its_preset(model: str, preset: str) -> None:
    assert find_preset(None, model).name == preset


def test_an_unknown_model_needs_a_preset() -> None:
    with pytest.raises(UsageError, match="which convention") as caught:
        find_preset(None, "somebody/prm")
    assert "math-shepherd" in (caught.value.hint or "")


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        find_preset("math-sheperd", "m")
    assert caught.value.hint == "did you mean math-shepherd?"


def test_a_file_says_the_same_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('layout = "text"\nprompt = "Q: {question}\\n"\nread_at = "last"\nhead = "value"\n'
                    'head_tensors = "v"\nsquash = "tanh"\nscale = 2\nmodels = ["x"]\n')  # fmt: skip
    assert find_preset(str(path), "m") == RewardPreset(
        name="mine", layout="text", prompt="Q: {question}\n", read_at="last", head="value", head_tensors="v",
        squash="tanh", scale=2.0, models=("x",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steptag": "x"}, "unknown key `steptag`"),
        ({"name": "x"}, "unknown key `name`"),
        ({"layout": None}, "`layout` is missing"),
        ({"layout": "html"}, "`layout` is `html`"),
        ({"layout": 3}, "`layout` must be a string, not 3"),
        ({"read_at": "end"}, "`read_at` is `end`"),
        ({"head": ["lm"]}, "`head` must be a string"),
        ({"prompt": "no place"}, "must contain {question}"),
        ({"step_tag": None}, "`step_tag` is missing"),
        ({"bad_token": None}, "`bad_token` is missing"),
        ({"head_tensors": "v"}, "`head_tensors` has no use with head `lm`"),
        ({"scale": 2.0}, "`scale` has no use"),
        ({"scale": True}, "`scale` must be a number"),
        ({"scale": float("nan")}, "`scale` must be a number"),
        ({"scale": 0}, "`scale` must be a number"),
        ({"models": "x"}, "`models` must be a list"),
        ({"layout": "turns"}, "go together"),
        ({"layout": "chat", "read_at": "last"}, 'needs read_at "tag"'),
        ({"system": "be"}, "no place for `system`"),
        ({"layout": "pieces", "joiner": " "}, "no place for `joiner`"),
        ({"head": "value"}, "`good_token` has no use|`head_tensors` is missing"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(change: dict[str, Any], text: str) -> None:
    table = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(UsageError, match=text) as caught:
        parse_preset("mine", table)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"layout = ", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
        (b"a = " + b"[" * 5000, "is no TOML|unknown key"),
        (b"x" * (1 << 17), "longer than"),
        (b"a = 1\na = 2", "is no TOML"),
        (b'"\\u001b[2J" = 1', r"unknown key `\?\[2J`"),
        (b"", "`layout` is missing"),
    ],
)
def test_a_broken_file_is_one_clear_error(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=text):
        read_preset(str(path))


@pytest.mark.parametrize("spec", ["missing.toml", "a\0b.toml", ".", "dir.toml"])
def test_a_file_that_cannot_be_read_is_a_usage_error(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dir.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        find_preset(spec, "m")


values = st.one_of(
    st.sampled_from(["text", "pieces", "turns", "chat", "tag", "last", "lm", "value", "2class", "tanh", "{question}"]),
    st.text(max_size=5), st.integers(), st.floats(), st.booleans(), st.lists(st.text(max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
keys = st.sampled_from([*GOOD, "system", "joiner", "head_tensors", "squash", "scale", "models", "other"])


@given(st.dictionaries(keys, values, max_size=10), st.booleans())
def test_any_table_is_a_preset_or_a_usage_error(table: dict[str, Any], fill: bool) -> None:
    error = None
    try:
        preset = parse_preset("x", (GOOD if fill else {}) | table)
    except UsageError as refusal:
        error = refusal
    assert "{question}" in preset.prompt if error is None else "\n" not in error.message
