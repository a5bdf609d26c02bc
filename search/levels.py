"""Searches that grow the tree family by family: the base of beam, DVTS and REBASE."""

from __future__ import annotations

from typing import ClassVar

from .children import Children
from .families import Families, Family
from .protocols import Expand
from .select import value
from .tree import Node, SearchTree


class Levels:
    """Begins with a family of `width` children of the root. A finished path backs its value up once; the search is done
    when no family is left."""

    greedy: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    width: int
    oversample: float
    aggregate: str
    distinct: bool
    coverage: float | None
    seed: int | None

    def __init__(self) -> None:
        self._families = Families(
            self.oversample, Children(distinct=self.distinct, coverage=self.coverage, seed=self.seed)
        )
        self._started = False

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self._started:
            self._started = True
            self._families.want(tree, tree.root, self.width)
        return self._families.take(room)

    def done(self, tree: SearchTree) -> str | None:
        return "finished" if self._started and not self._families else None

    def _tell(self, tree: SearchTree, expand: Expand, node: Node) -> Family | None:
        """Count a result of a family; returns the family when it is complete."""
        self._back_up(tree, expand, node)
        return self._families.tell(tree, expand, node)

    def _back_up(self, tree: SearchTree, expand: Expand, node: Node) -> None:
        if node.id == expand.id and node.terminal is not None:
            tree.backup(node, self._worth(node))

    def _worth(self, node: Node) -> float:
        return value(node, self.aggregate)
