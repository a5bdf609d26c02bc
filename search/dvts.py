"""Diverse verifier tree search: independent subtrees, one path each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .children import coverage_option, distinct_option, seed_option
from .levels import Levels
from .options import OptionError, option
from .protocols import Expand
from .select import AGGREGATES, choose, rank
from .tree import Node, SearchTree


@dataclass
class DVTS(Levels):
    """`width` / `expand` subtrees, each a greedy search that follows its best step.

    The root gets `width` distinct children, dealt to the subtrees in turn: child j goes to subtree j mod (width /
    expand). A subtree keeps the child of highest value, gives it `expand` distinct children, and so on until that child
    ends its path. The subtrees do not compete, so one good-looking step cannot take the whole budget. The answer is the
    finished path of highest value.

    Source: Beeching, Tunstall, Rush 2024, "Scaling test-time compute with open models" (search-and-learn), where the
    children are independent samples; here they are distinct, as in `beam`.
    """

    name: ClassVar[str] = "dvts"

    width: int = option(16, "children of a level, over all subtrees", minimum=1)
    expand: int = option(4, "distinct children of each subtree's path", minimum=1)
    oversample: float = option(2.0, "samples tried at most, as a multiple of the children wanted", minimum=1)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    seed: int | None = seed_option()
    aggregate: str = option("last", "value of a path from its steps' rewards", choices=AGGREGATES)

    def __post_init__(self) -> None:
        if self.width % self.expand:
            raise OptionError(f"width {self.width} is not a multiple of expand {self.expand}", option="expand")
        super().__init__()

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        family = self._tell(tree, expand, node)
        if family is None:
            return []
        if family.node is not tree.root:
            return [tree.leave(family.node, "expanded"), *self._follow(tree, family.children)]
        subtrees = self.width // self.expand
        return [left for i in range(subtrees) for left in self._follow(tree, family.children[i::subtrees])]

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, worth=self._worth)

    def _follow(self, tree: SearchTree, children: list[Node]) -> list[Node]:
        """Go on from a subtree's best child; returns the others, which fall out."""
        if not children:
            return []
        best = min(children, key=lambda node: rank(node, self._worth))
        if best.terminal is None:
            self._families.want(tree, best, self.expand)
        others = [node for node in children if node is not best and node.terminal is None]
        return [tree.leave(node, "pruned", "beam") for node in others]
