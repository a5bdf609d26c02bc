"""Beam search over steps, with distinct children."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from .options import OptionError, option
from .protocols import Expand
from .select import AGGREGATES, choose, rank, value
from .tree import Node, SearchTree

COVERED = 0.99
"""Probability mass above which a node's children are taken to be all that the model would write."""


@dataclass(slots=True)
class _Beam:
    """One path of the level under way: how many distinct children it is to get and what it has got."""

    node: Node
    wanted: int
    limit: int
    tried: int = 0
    waiting: int = 0
    found: int = 0

    def more(self) -> int:
        """Samples to ask for now: what is missing, while tries are left and the model has more to say."""
        if self.node.mass >= COVERED:
            return 0
        return max(0, min(self.wanted - self.found, self.limit - self.tried))


@dataclass
class Beam:
    """Level-synchronous beam search over steps.

    Level l: sample `width` distinct children of the root, later `expand` of each beam. A sample that equals a sibling,
    or leads to a state that the tree has already, is a duplicate; samples are replaced until enough are distinct or
    `oversample` times as many were tried. Then the `keep` paths of highest value among the level's children and all
    finished paths stay; the unfinished of these are the next beams. It ends when no unfinished path is among them.
    The answer is the finished path of highest value.

    Source: Snell et al. 2024, arXiv 2408.03314 (beam search against a process reward model, `width` = N samples and
    `keep` = N / M), with sampling without replacement in place of independent samples.
    """

    name: ClassVar[str] = "beam"
    greedy: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    width: int = option(16, "children of a level, over all beams", minimum=1)
    keep: int = option(4, "paths that stay after a level", minimum=1)
    expand: int | None = option(None, "distinct children of each beam; default width / keep", minimum=1)
    oversample: float = option(2.0, "samples tried at most, as a multiple of the children wanted", minimum=1)
    aggregate: str = option("last", "value of a path from its steps' rewards", choices=AGGREGATES)

    def __post_init__(self) -> None:
        if self.keep > self.width:
            raise OptionError(f"keep {self.keep} is more than the {self.width} children of a level", option="keep")
        if self.expand is not None and self.expand * self.keep > self.width:
            raise OptionError(
                f"{self.keep} beams of {self.expand} children are more than width {self.width}", option="expand"
            )
        self._level: dict[str, _Beam] = {}
        self._queue: deque[Expand] = deque()
        self._open = 0
        """Beams of the level whose children are not complete."""
        self._children: list[Node] = []
        self._started = False

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self._started:
            self._started = True
            self._begin(tree, [tree.root], self.width)
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        beam = self._level[expand.parent]
        beam.waiting -= 1
        if node.ordinal == expand.ordinal and node.parent is beam.node:
            beam.found += 1
            self._children.append(node)
            if node.terminal is not None:
                tree.backup(node, self._worth(node))
        if beam.waiting:
            return []
        self._sample(tree, beam)
        if beam.waiting:
            return []
        self._open -= 1
        leaving = [] if beam.node is tree.root else [tree.leave(beam.node, "expanded")]
        if not self._open:
            leaving += self._cut(tree)
        return leaving

    def done(self, tree: SearchTree) -> bool:
        return self._started and not self._level

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, worth=self._worth)

    def _begin(self, tree: SearchTree, nodes: list[Node], wanted: int) -> None:
        limit = math.ceil(wanted * self.oversample)
        self._level = {node.id: _Beam(node, wanted, limit) for node in nodes}
        self._open = len(nodes)
        for beam in self._level.values():
            self._sample(tree, beam)

    def _sample(self, tree: SearchTree, beam: _Beam) -> None:
        more = beam.more()
        beam.tried += more
        beam.waiting += more
        self._queue.extend(tree.want(beam.node) for _ in range(more))

    def _cut(self, tree: SearchTree) -> list[Node]:
        """Keep the best paths and begin the next level with them; returns the nodes that fall out."""
        unfinished = [node for node in self._children if node.terminal is None]
        best = sorted(unfinished + tree.terminals, key=lambda node: rank(node, self._worth))[: self.keep]
        beams = [node for node in best if node.terminal is None]
        stay = set(beams)
        leaving = [tree.leave(node, "pruned", "beam") for node in unfinished if node not in stay]
        self._children = []
        self._begin(tree, beams, self.expand or self.width // self.keep)
        return leaving

    def _worth(self, node: Node) -> float:
        return value(node, self.aggregate)
