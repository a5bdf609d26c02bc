"""Option values that are more than a number: sizes, pairs, escapes, prompts."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frtool.errors import UsageError

MAX_PROMPT_BYTES = 16 * 1024 * 1024
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(|[kmgt]i?)b?\s*\Z", re.IGNORECASE)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def size(text: str, flag: str) -> int:
    """Bytes of `2GiB`, `512 MB`, `1.5g` or `4096`. Raises UsageError, which names the flag."""
    match = _SIZE.match(text)
    if match is None:
        raise UsageError(f"{flag} `{text}` is no size", hint="write it as 2GiB, 512MB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def unescape(text: str) -> str:
    r"""`text` with `\n`, `\t`, `\r` and `\\` as the characters that they stand for: shells pass them on as two."""
    return re.sub(r"\\([ntr\\])", lambda m: _ESCAPES[m[1]], text)


def algorithm_options(pairs: Sequence[str], direct: Mapping[str, Any]) -> dict[str, Any]:
    """The options given as `name=value` and as flags of their own, by name. Raises UsageError."""
    given: dict[str, Any] = {name: value for name, value in direct.items() if value is not None}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name or not value.strip():
            raise UsageError(f"--option `{pair}` is not of the form name=value", hint="for example `-o c_puct=1.5`")
        if name in given:
            raise UsageError(f"the option {name} is given twice")
        given[name] = value.strip()
    return given


def read_prompt(argument: str | None, file: Path | None = None) -> str:
    """The prompt from the argument, from `file`, or from stdin for `-` and for a pipe. Raises UsageError."""
    if argument is not None and file is not None:
        raise UsageError("the prompt is given twice, as an argument and by --prompt-file", hint="leave one of them out")
    if file is not None and str(file) != "-":
        text = _text(_read_file(file))
    elif argument is not None and argument != "-":
        text = argument
    elif argument is None and file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("no prompt", hint='pass a question: frtool search "Make 24 from 4, 5, 6, 10"')
    else:
        text = _text(sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("the prompt is not valid UTF-8") from None
    return text


def _read_file(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_PROMPT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read the prompt from {file}: {reason}") from None


def _text(data: bytes) -> str:
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"the prompt is longer than {MAX_PROMPT_BYTES:,} bytes")
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff").rstrip("\r\n")
