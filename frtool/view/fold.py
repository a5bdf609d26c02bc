"""Which lines of a tree fit into a given height: the best path whole where it can be, then what matters most."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise

from .model import TreeModel, ViewNode

# How much worth a line loses per level below the best path, and per better sibling: shows breadth before depth.
_PER_LEVEL = 0.15
_PER_SIBLING = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `node` is None for a line that stands for `hidden` folded nodes, for `skipped` steps of the best path,
    or for a step of which the text so far is `growing`. `guides[i]` says whether the line of the ancestor at level
    i + 1 goes on below."""

    node: ViewNode | None
    guides: tuple[bool, ...]
    best: bool = False
    hidden: int = 0
    skipped: int = 0
    growing: str | None = None


def fold(model: TreeModel, height: int) -> list[Row]:
    """At most `height` rows (at least 1), the root first, children by ordinal."""
    height = max(height, 1)
    path = model.best().path()
    if len(path) + 1 > height:
        return _long_path(path, height)
    # Beside a path that just fits there is no room for fold lines; the counts then stand at the ends of its lines.
    tight = 1 + sum(1 + (len(n.children) > 1) for n in path[:-1]) > height
    shown = {id(a): [b] for a, b in pairwise(path)} if tight else _choose(path, height)
    rows: list[Row] = []
    on_path = {id(n) for n in path}
    # The root's line has no guide; each level below adds whether that level goes on.
    stack: list[tuple[Row | ViewNode, tuple[bool, ...]]] = [(model.root, ())]
    while stack:
        item, guides = stack.pop()
        if isinstance(item, Row):
            rows.append(item)
            continue
        kept = shown.get(id(item), [])
        folded = item.below - sum(1 + c.below for c in kept)
        rows.append(Row(item, guides, best=id(item) in on_path, hidden=0 if kept and not tight else folded))
        lines: list[Row | ViewNode] = [*kept]
        if kept and folded and not tight:
            lines.append(Row(None, (*guides, False), hidden=folded))
        for i, line in reversed(list(enumerate(lines))):
            stack.append((line, (*guides, i < len(lines) - 1)))
    return rows


def _choose(path: list[ViewNode], height: int) -> dict[int, list[ViewNode]]:
    """The shown children of each shown node, by ordinal, so that they and the fold lines fit."""
    shown: dict[int, list[ViewNode]] = {}
    used = 1
    heap: list[tuple[float, int, ViewNode, int]] = []
    serial = 0

    def offer(node: ViewNode, depth: int, room: int) -> None:
        nonlocal serial
        skip = shown.get(id(node), [])
        candidates = heapq.nlargest(room, (c for c in node.children.values() if c not in skip), key=_worth)
        for rank, child in enumerate(candidates):
            serial += 1
            heapq.heappush(heap, (_PER_LEVEL * depth + _PER_SIBLING * rank - _worth(child), serial, child, depth))

    def cost(child: ViewNode) -> int:
        parent = child.parent
        assert parent is not None
        kept = shown.get(id(parent), [])
        before = bool(kept) and len(kept) < len(parent.children)
        after = len(kept) + 1 < len(parent.children)
        return 1 + int(after) - int(before)

    def keep(child: ViewNode) -> None:
        nonlocal used
        used += cost(child)
        shown.setdefault(id(child.parent), []).append(child)

    for child in path[1:]:
        keep(child)
    for node in path:
        offer(node, 0, height)
    while heap and used <= height:  # a last child takes the place of its fold line
        _, _, child, depth = heapq.heappop(heap)
        if used + cost(child) <= height:
            keep(child)
            offer(child, depth + 1, height)
    for children in shown.values():
        children.sort(key=lambda c: c.ordinal)
    return shown


def _worth(node: ViewNode) -> float:
    value = node.value
    worth = 0.0 if value is None or value != value else value
    return worth + (1.0 if node.verified else 0.0) - (1.0 if node.dropped else 0.0)


def _long_path(path: list[ViewNode], height: int) -> list[Row]:
    """The head and the tail of a path that is too long, and a line for the steps between."""
    if height == 1:
        return [Row(path[-1], (), best=True)]
    if height == 2:
        return [Row(path[0], (), best=True), Row(path[-1], (False,), best=True)]
    head = max(1, (height - 1) // 4)
    tail = height - 1 - head
    rows = [Row(node, (False,) * i, best=True) for i, node in enumerate(path[:head])]
    rows.append(Row(None, (False,) * head, best=True, skipped=len(path) - head - tail))
    rows += [Row(node, (False,) * (head + 1 + i), best=True) for i, node in enumerate(path[len(path) - tail :])]
    return rows
