"""The part of a tree that a graph or a page has room for, with a parent for every line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from frtool.view.fold import Row, fold
from frtool.view.glyphs import number
from frtool.view.model import TreeModel
from frtool.view.safe import safe_line


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the folded tree: its own index, its parent's (None for the root), and what the row shows."""

    index: int
    parent: int | None
    row: Row


def outline(model: TreeModel, limit: int) -> list[Entry]:
    """At most `limit` lines of the tree, the best path first of all, in depth-first order."""
    entries: list[Entry] = []
    above: list[int] = []  # by depth, the index of the last line there
    for index, row in enumerate(fold(model, limit)):
        depth = len(row.guides)
        del above[depth:]
        entries.append(Entry(index, above[-1] if above else None, row))
        above.append(index)
    return entries


def whole(model: TreeModel) -> int:
    """Lines that the whole tree takes."""
    return max(2 * len(model.nodes), 2)


def caption(row: Row, width: int) -> Iterator[str]:
    """The lines of a graph node's label: the step, then its figures. Safe for a terminal, not yet for a file format."""
    node = row.node
    if node is None:
        yield f"{row.skipped:,} steps" if row.skipped else f"+{row.hidden:,} more"
        return
    yield safe_line(node.text, width) or "(empty step)"
    figures = [f"value {number(node.value).strip()}"] if node.value is not None else []
    figures += [f"{node.visits:,} visit" + "s" * (node.visits != 1)] if node.visits else []
    figures += [f"reward {number(node.reward).strip()}"] if node.reward is not None else []
    figures += [f"+{row.hidden:,} more"] if row.hidden else []
    if figures:
        yield ", ".join(figures)
    if node.answer is not None:
        verdict = {True: ", verified", False: ", wrong", None: ""}[node.verified]
        yield f"answer {safe_line(node.answer, width)}{verdict}"


def kind(row: Row) -> str:
    """'best', 'right', 'wrong', 'finished', 'pruned', 'more' or 'step': what a graph colours by."""
    node = row.node
    if node is None:
        return "more"
    if row.best:
        return "best"
    if node.verified is not None:
        return "right" if node.verified else "wrong"
    if node.terminal is not None:
        return "finished"
    return "pruned" if node.pruned else "step"
