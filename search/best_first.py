"""Best-first search: always expand the most promising unfinished step, wherever it stands."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, ClassVar

from .children import Children, coverage_option, distinct_option, seed_option
from .families import Families
from .options import option
from .protocols import Expand
from .select import AGGREGATES, choose, rank, value
from .tree import Node, SearchTree


@dataclass
class BestFirst:
    """A queue of unfinished steps by value: take the best `leaf_batch`, give each `expand` distinct children, queue
    these.

    Nothing is thrown away, so a path that was left can be taken up again when the others turn out worse. It ends with
    `answers` finished paths of at least `accept` each, with an empty queue, or at the budget. The answer is the
    finished path of highest value.

    Sources: Koh et al. 2024, arXiv 2407.01476 (best-first over language model actions); Yao et al. 2023,
    arXiv 2305.10601 (search over thoughts).
    """

    name: ClassVar[str] = "best-first"
    greedy: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    ordered: ClassVar[bool] = True

    expand: int = option(4, "distinct children of a step", minimum=1)
    leaf_batch: int = option(4, "steps expanded at once", minimum=1, maximum=4096)
    oversample: float = option(2.0, "samples tried at most, as a multiple of the children wanted", minimum=1)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    seed: int | None = seed_option()
    aggregate: str = option("last", "value of a path from its steps' rewards", choices=AGGREGATES)
    answers: int | None = option(None, "stop after so many finished paths; default only the budget", minimum=1)
    accept: float = option(0.0, "value that a finished path needs to count", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        self._families = Families(
            self.oversample, Children(distinct=self.distinct, coverage=self.coverage, seed=self.seed)
        )
        self._queue: list[tuple[tuple[Any, ...], Node]] = []
        self._started = False
        self._accepted = 0

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self._started:
            self._started = True
            self._families.want(tree, tree.root, self.expand)
        return self._families.take(room)

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        if node.id == expand.id:
            worth = self._worth(node)
            if node.terminal is None:
                heapq.heappush(self._queue, (rank(node, self._worth), node))
            else:
                tree.backup(node, worth)
                self._accepted += node.answer is not None and worth >= self.accept
        family = self._families.tell(tree, expand, node)
        while self._queue and len(self._families) < self.leaf_batch:
            self._families.want(tree, heapq.heappop(self._queue)[1], self.expand)
        return [] if family is None or family.node is tree.root else [tree.leave(family.node, "expanded")]

    def done(self, tree: SearchTree) -> str | None:
        return "answers" if self.answers is not None and self._accepted >= self.answers else None

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, worth=self._worth)

    def _worth(self, node: Node) -> float:
        return value(node, self.aggregate)
