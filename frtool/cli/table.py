"""Rows of words in columns, for stdout."""

from __future__ import annotations

from collections.abc import Sequence

from frtool.view.line import cells
from frtool.view.safe import safe_line


def table(rows: Sequence[Sequence[str]], limit: int = 60) -> str:
    """The rows with their columns aligned at the left, every cell one safe line of about `limit` characters; the last
    column is never cut."""
    last = max(map(len, rows), default=0) - 1
    safe = [[safe_line(cell, limit if i < last else 2000) for i, cell in enumerate(row)] for row in rows]
    widths = [max((cells(row[i]) for row in safe if i < len(row)), default=0) for i in range(last + 1)]
    lines = ("  ".join(c + " " * (widths[i] - cells(c)) for i, c in enumerate(row)).rstrip() for row in safe)
    return "".join(line + "\n" for line in lines)
