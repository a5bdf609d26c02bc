"""Chains: independent paths from the root to their ends, the base of every method that samples whole answers."""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from .protocols import Expand
from .select import value
from .tree import Node, SearchTree


class Chains:
    """Grows chain i as the root's child i and then always child 0, so a chain depends on no other.

    `count` chains in all. Each finished chain backs its value up once.
    """

    greedy: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def __init__(self, count: int) -> None:
        self._count = count
        self._fronts: deque[Node] = deque()
        self._started = 0
        self._finished = 0

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        wanted: list[Expand] = []
        while len(wanted) < room:
            if self._fronts:
                wanted.append(tree.want(self._fronts.popleft()))
            elif self._started < self._count:
                wanted.append(tree.want(tree.root))
                self._started += 1
            else:
                break
        return wanted

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        if node.terminal is None:
            self._fronts.append(node)
        else:
            self._finished += 1
            tree.backup(node, value(node))
        parent = tree[expand.parent]
        return [] if parent is tree.root else [tree.leave(parent, "expanded")]

    def done(self, tree: SearchTree) -> str | None:
        return "finished" if self._finished >= self._count else None
