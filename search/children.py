"""How an algorithm samples the children of a node: distinct ones, or independent ones."""

from __future__ import annotations

from .lines import Lines
from .protocols import Expand
from .tree import Node, SearchTree

FREE = 0.4


class Children:
    """Requests for children. Where they are to be `distinct`, each is a sample of the lines that the algorithm has not
    been told of after that node (`Lines`); otherwise, and where the generator gives no intervals, of all lines.

    Samples under way leave less and less to choose from: the next one waits for one of them when less than the share
    `free` of the unseen probability lies elsewhere. With 1 it waits for all.

    What a request excludes depends on the order of telling alone, so neither on the generator's capacity nor its pace.
    """

    def __init__(self, *, distinct: bool, seed: int | None, free: float = FREE) -> None:
        self.distinct = distinct
        self._seed = seed or 0
        self._free = free

    def want(self, tree: SearchTree, node: Node) -> Expand:
        if not self.distinct:
            return tree.want(node)
        return tree.want(node, lines=node.lines or Lines(self._seed, node.id))

    def ready(self, tree: SearchTree, node: Node) -> bool:
        """Whether to ask for one more now."""
        lines = node.lines
        if lines is None or not node.pending or tree.blind or (lines.told and not lines.seen):
            return True
        return lines.free >= self._free * lines.rest and lines.free > 0
