"""How a process reward model wants to be asked, as data."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from frtool.errors import UsageError
from frtool.models.text import one_line

LAYOUTS = ("text", "pieces", "turns", "chat")
READ_AT = ("tag", "before_good", "last")
HEADS = ("lm", "value", "2class")
SQUASHES = ("sigmoid", "tanh")
MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RewardPreset:
    """The convention of one family of reward models. Strings are as written in the TOML file.

    A step's value is read where its text ends: "tag" at the step tag behind it, "last" at its last token,
    "before_good" where the good token of its turn would be predicted.
    """

    name: str
    layout: str
    """"text": question and steps are one text. "pieces": the same, each line tokenized alone. "chat": the question is
    the user's turn, the steps are the assistant's. "turns": each step is a user's turn, answered by the good token."""
    read_at: str
    head: str
    """"lm": good against bad token. "value": one number, squashed. "2class": the second of two classes."""
    prompt: str = "{question}"
    """The question; it stands before the first step, except in the chat layout. "{bos}" is the start token's text."""
    system: str = ""
    step_tag: str = ""
    """Stands behind every step; its last token is the one that counts."""
    joiner: str = ""
    """Stands between a step, or its tag, and the next."""
    good_token: str = ""
    bad_token: str = ""
    head_tensors: str = ""
    """Name that the tensors of a value or 2class head share in the model's safetensors files."""
    squash: str = ""
    """Of a value x: "sigmoid" is 1 / (1 + exp(-x / scale)), "tanh" is (1 + tanh(x / scale)) / 2."""
    scale: float = 1.0
    models: tuple[str, ...] = ()
    """Names of published models that this preset reads."""

    @property
    def classes(self) -> int:
        """Values that the head gives; 0 is the whole vocabulary."""
        return {"lm": 0, "value": 1, "2class": 2}[self.head]


def built_in() -> tuple[str, ...]:
    """Names of the presets that come with frtool."""
    return tuple(_tables())


def find_preset(spec: str | None, model: str) -> RewardPreset:
    """The preset called `spec`, or in the TOML file `spec`, or without one that of the published model `model`.

    Raises UsageError.
    """
    if spec is None:
        name = Path(model).name.lower()
        for preset, table in _tables().items():
            if any(name == str(known).lower() for known in table.get("models", ())):
                return parse_preset(preset, table)
        raise UsageError(
            f"which convention does the reward model {one_line(model)} follow?",
            hint=f"pass --reward-preset FILE.toml, or one of {', '.join(built_in())}",
        )
    return parse_preset(spec, _tables()[spec]) if spec in _tables() else read_preset(spec)


def read_preset(spec: str) -> RewardPreset:
    """The preset in a TOML file: its keys are those of RewardPreset, at the top. Raises UsageError."""
    shown = one_line(spec)
    path = Path(spec)
    if path.suffix != ".toml":
        close = difflib.get_close_matches(spec, built_in(), 1)
        hint = f"did you mean {close[0]}?" if close else f"pass a .toml file, or one of {', '.join(built_in())}"
        raise UsageError(f"--reward-preset `{shown}` is unknown", hint=hint)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"the preset {shown} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"the preset {shown} is longer than {MAX_BYTES:,} bytes")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"the preset {shown} is no TOML: {one_line(error)}") from None
    return parse_preset(path.stem, table)


def parse_preset(name: str, table: dict[str, Any]) -> RewardPreset:
    """Check a table of keys. Raises UsageError that names the first key that is unknown, missing or wrong."""
    shown = one_line(name, 60)
    known = {item.name: item for item in fields(RewardPreset) if item.name != "name"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise UsageError(f"preset {shown}: unknown key `{one_line(key, 60)}`", hint=hint)
        values[key] = _value(shown, key, value)
    for key, item in known.items():
        if key not in values and item.default is MISSING:
            raise UsageError(f"preset {shown}: the key `{key}` is missing")
    preset = RewardPreset(name, **values)
    _check(shown, preset)
    return preset


def _value(shown: str, key: str, value: Any) -> Any:
    if key == "models":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"preset {shown}: `models` must be a list of strings")
        return tuple(value)
    if key == "scale":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1e-9 <= value <= 1e9:
            raise UsageError(f"preset {shown}: `scale` must be a number above 0, not {one_line(value, 60)}")
        return float(value)
    if not isinstance(value, str):
        raise UsageError(f"preset {shown}: `{key}` must be a string, not {one_line(value, 60)}")
    return value


def _check(shown: str, preset: RewardPreset) -> None:
    for key, allowed in (("layout", LAYOUTS), ("read_at", READ_AT), ("head", HEADS), ("squash", ("", *SQUASHES))):
        value = getattr(preset, key)
        if value not in allowed:
            choice = ", ".join(item for item in allowed if item)
            raise UsageError(f"preset {shown}: `{key}` is `{one_line(value, 60)}`", hint=f"choose from {choice}")
    is_turns, is_lm = preset.layout == "turns", preset.head == "lm"
    if is_turns != (preset.read_at == "before_good"):
        raise UsageError(f'preset {shown}: layout "turns" and read_at "before_good" go together')
    if preset.layout == "chat" and preset.read_at != "tag":
        raise UsageError(f'preset {shown}: layout "chat" needs read_at "tag"')
    if preset.system and preset.layout not in ("chat", "turns"):
        raise UsageError(f"preset {shown}: layout `{preset.layout}` has no place for `system`")
    needed = {
        "step_tag": preset.read_at == "tag",
        "good_token": is_lm or is_turns,
        "bad_token": is_lm,
        "head_tensors": not is_lm,
        "squash": preset.head == "value",
    }
    for key, wanted in needed.items():
        given = bool(getattr(preset, key))
        if wanted and not given:
            raise UsageError(f"preset {shown}: `{key}` is missing")
        if given and not wanted and key != "step_tag":
            raise UsageError(f"preset {shown}: `{key}` has no use with head `{preset.head}`")
    if preset.scale != 1.0 and preset.head != "value":
        raise UsageError(f"preset {shown}: `scale` has no use with head `{preset.head}`")
    if preset.layout == "pieces" and preset.joiner:
        raise UsageError(f"preset {shown}: layout `pieces` has no place for `joiner`")
    if "{question}" not in preset.prompt:
        raise UsageError(f"preset {shown}: `prompt` must contain {{question}}")


@cache
def _tables() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("presets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
