"""Text from model files and libraries, made safe for one line of a terminal."""

from __future__ import annotations


def one_line(text: object, limit: int = 160) -> str:
    """`text` with its white space collapsed and its control characters replaced, at most `limit` characters."""
    line = " ".join(str(text)[: 8 * limit].split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"
