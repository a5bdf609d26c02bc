"""Text from model files and libraries, made safe for one line of a terminal."""

from __future__ import annotations


def one_line(text: object, limit: int = 160) -> str:
    """First non-empty line of `text` without control characters, at most `limit` characters."""
    line = next((line for line in str(text).splitlines() if line.strip()), "")
    line = "".join(char if char.isprintable() else "?" for char in line.strip())
    return line if len(line) <= limit else line[: limit - 1] + "…"
