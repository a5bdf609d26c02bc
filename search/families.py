"""Families: so many distinct children of a node, sampled until there are enough."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from .children import Children
from .protocols import Expand
from .tree import Node, SearchTree


@dataclass(slots=True, eq=False)
class Family:
    """The children that `node` is to get and those that it got. It is complete when no sample is under way."""

    node: Node
    wanted: int
    limit: int
    """Samples to try at most."""
    children: list[Node] = field(default_factory=list)
    tried: int = 0
    waiting: int = 0

    def missing(self) -> int:
        """Samples to ask for: the children that lack, while tries are left and the model has more to say."""
        if self.node.covered:
            return 0
        return max(0, min(self.wanted - len(self.children) - self.waiting, self.limit - self.tried))


class Families:
    """The families of a search that are under way, and the steps that they want next, in order."""

    def __init__(self, oversample: float, children: Children) -> None:
        self._oversample = oversample
        self._children = children
        self._open: dict[str, Family] = {}
        self._queue: deque[Expand] = deque()

    def __len__(self) -> int:
        """Families that are not complete."""
        return len(self._open)

    def want(self, tree: SearchTree, node: Node, wanted: int) -> Family | None:
        """Give `node` a family of `wanted` distinct children, with at most `oversample` times as many samples.

        Children that it has already count; returns the family where it is complete with them.
        """
        family = Family(node, wanted, math.ceil(wanted * self._oversample), list(node.children))
        self._sample(tree, family)
        if not family.waiting:
            return family
        self._open[node.id] = family
        return None

    def take(self, room: int) -> list[Expand]:
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> Family | None:
        """Count a result; returns its family when that is complete. Duplicates are replaced while tries are left."""
        family = self._open[expand.parent]
        family.waiting -= 1
        if node.id == expand.id:
            family.children.append(node)
        if self._children.distinct or not family.waiting:
            self._sample(tree, family)
        if family.waiting:
            return None
        del self._open[expand.parent]
        return family

    def _sample(self, tree: SearchTree, family: Family) -> None:
        for _ in range(family.missing()):
            if not self._children.ready(tree, family.node):
                break
            family.tried += 1
            family.waiting += 1
            self._queue.append(self._children.want(tree, family.node))
