"""How an algorithm samples the children of a node: distinct ones, or independent ones."""

from __future__ import annotations

from .lines import Lines
from .protocols import Expand
from .tree import Node, SearchTree

_FIRST_ROUND = 4


class Children:
    """Requests for children. Where they are to be `distinct`, each is a sample of the lines that the algorithm has not
    been told of after that node (`Lines`); otherwise, and where the generator gives no intervals, of all lines.

    What a request excludes depends on the order of telling alone, so neither on the generator's capacity nor its pace.
    """

    def __init__(self, *, distinct: bool, seed: int | None, spread: bool = True) -> None:
        self._distinct = distinct
        self._seed = seed or 0
        self._spread = spread

    def want(self, tree: SearchTree, node: Node) -> Expand:
        if not self._distinct:
            return tree.want(node)
        return tree.want(node, lines=node.lines or Lines(self._seed, node.id, spread=self._spread))

    def at_once(self, node: Node, wanted: int) -> int:
        """How many of the `wanted` samples to ask for now, so that those after them can avoid their lines: at first a
        few, because a model repeats its favourites, then as many as there are lines."""
        if not self._distinct or (node.lines is not None and node.lines.told and not node.lines.seen):
            return wanted
        return min(wanted, max(_FIRST_ROUND, 0 if node.lines is None else node.lines.seen))
