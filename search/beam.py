"""Beam search over steps, with distinct children."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .families import Families
from .options import OptionError, option
from .protocols import Expand
from .select import AGGREGATES, choose, rank, value
from .tree import Node, SearchTree


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
        self._families = Families(self.oversample)
        self._children: list[Node] = []
        self._started = False

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self._started:
            self._started = True
            self._families.want(tree, tree.root, self.width)
        return self._families.take(room)

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        if node.id == expand.id and node.terminal is not None:
            tree.backup(node, self._worth(node))
        family = self._families.tell(tree, expand, node)
        if family is None:
            return []
        self._children += family.children
        leaving = [] if family.node is tree.root else [tree.leave(family.node, "expanded")]
        return leaving if self._families else leaving + self._cut(tree)

    def done(self, tree: SearchTree) -> bool:
        return self._started and not self._families

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, worth=self._worth)

    def _cut(self, tree: SearchTree) -> list[Node]:
        """Keep the best paths and begin the next level with them; returns the nodes that fall out."""
        unfinished = [node for node in self._children if node.terminal is None]
        best = sorted(unfinished + tree.terminals, key=lambda node: rank(node, self._worth))[: self.keep]
        beams = [node for node in best if node.terminal is None]
        stay = set(beams)
        leaving = [tree.leave(node, "pruned", "beam") for node in unfinished if node not in stay]
        self._children = []
        for beam in beams:
            self._families.want(tree, beam, self.expand or self.width // self.keep)
        return leaving

    def _worth(self, node: Node) -> float:
        return value(node, self.aggregate)
