"""REBASE: a level's samples go to the steps in proportion to their rewards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .children import coverage_option, distinct_option, seed_option
from .levels import Levels
from .options import option
from .protocols import Expand
from .select import AGGREGATES, choose, rank
from .tree import Node, SearchTree


@dataclass
class Rebase(Levels):
    """Reward-balanced search. Level by level, `width` - F samples are shared among the level's k unfinished steps,

        W_j = (width - F) · exp(V_j / balance) / sum_k exp(V_k / balance),

    rounded to whole samples by largest remainder, where V_j is the value of step j and F the number of finished paths.
    A step without a sample leaves the search. It ends with `width` finished paths or nothing to expand. The answer is
    the one with the largest sum of values (`vote` weighted), or the finished path of highest value (best).

    Source: Wu et al. 2024, arXiv 2408.00724 (REBASE, equation 2), with duplicates merged.
    """

    name: ClassVar[str] = "rebase"

    width: int = option(16, "samples of a level, less the paths that are finished", minimum=1)
    balance: float = option(0.2, "temperature of the shares; smaller favours the best step more", minimum=1e-3)
    oversample: float = option(1.0, "samples tried at most, as a multiple of a step's share", minimum=1)
    distinct: bool = distinct_option()
    coverage: float | None = coverage_option()
    seed: int | None = seed_option()
    aggregate: str = option("last", "value of a path from its steps' rewards", choices=AGGREGATES)
    vote: str = option(
        "weighted", "take the best path, or the answer with the largest sum", choices=("best", "weighted")
    )

    def __post_init__(self) -> None:
        super().__init__()
        self._children: list[Node] = []

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        family = self._tell(tree, expand, node)
        if family is None:
            return []
        self._children += [child for child in family.children if child.terminal is None]
        leaving = [] if family.node is tree.root else [tree.leave(family.node, "expanded")]
        return leaving if self._families else leaving + self._share(tree)

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, vote=self.vote, worth=self._worth)

    def _share(self, tree: SearchTree) -> list[Node]:
        """Begin the next level; returns the steps that get no sample."""
        steps = sorted(self._children, key=lambda node: rank(node, self._worth))
        self._children = []
        samples = shares([self._worth(node) / self.balance for node in steps], self.width - len(tree.terminals))
        leaving = []
        for node, count in zip(steps, samples, strict=True):
            if count:
                self._families.want(tree, node, count)
            else:
                leaving.append(tree.leave(node, "pruned", "balance"))
        return leaving


def shares(logits: list[float], total: int) -> list[int]:
    """`total` split in proportion to exp(logits): whole numbers, the remainders largest first, then in order."""
    if not logits or total <= 0:
        return [0] * len(logits)
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
