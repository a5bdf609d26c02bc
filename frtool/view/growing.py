"""The steps that are being written, each below the node that it goes on from."""

from __future__ import annotations

from collections.abc import Mapping

from frtool.search.events import parent_id

from .fold import Row
from .line import cells
from .safe import safe_line


def with_growing(rows: list[Row], growing: Mapping[str, str], room: int) -> list[Row]:
    """`rows` with as many lines of growing steps as fit into `room` lines, the oldest first, right below their nodes.

    `growing` is text by future id; a step whose node is folded away is left out.
    """
    spare = room - len(rows)
    shown: dict[str, list[str]] = {row.node.id: [] for row in rows if row.node is not None}
    for node_id, text in growing.items():
        if spare > 0 and (above := parent_id(node_id)) in shown:
            shown[above].append(text)
            spare -= 1
    lines: list[Row] = []
    for i, row in enumerate(rows):
        lines.append(row)
        texts = shown[row.node.id] if row.node is not None else []
        follows = i + 1 < len(rows) and len(rows[i + 1].guides) > len(row.guides)
        lines += [
            Row(None, (*row.guides, follows or j < len(texts)), best=False, growing=text)
            for j, text in enumerate(texts, start=1)
        ]
    return lines


def end_of(text: str, width: int, more: str) -> str:
    """`text` as one line of at most `width` cells: its end, where the next words come."""
    line = safe_line(text, 4096)
    if cells(line) <= width:
        return line
    line = line[-width:]
    while line and cells(line) + cells(more) > width:
        line = line[1:]
    return (more + line)[: max(width, 0)]
