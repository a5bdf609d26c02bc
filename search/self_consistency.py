"""Self-consistency: sample whole answers and take the one that most of them agree on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from .chains import Chains
from .events import id_order
from .options import option
from .protocols import Expand
from .select import AGGREGATES, choose, value
from .tree import Node, SearchTree


@dataclass
class SelfConsistency(Chains):
    """`n` independent chains; the answer is the one that most of them give, then the one of the larger sum of values.

    With `converge` c it stops as soon as the chains that finished, in the order of their ids and without a gap, settle
    it: where v1 and v2 chains gave the two most frequent answers, the probability under a uniform prior that the first
    stays ahead of the second is

        P(Beta(v1 + 1, v2 + 1) > 1/2) = 1 - sum_{k <= v2} C(v1 + v2 + 1, k) / 2^(v1 + v2 + 1) >= c.

    Sources: Wang et al. 2022, arXiv 2203.11171 (self-consistency); Aggarwal et al. 2023, arXiv 2305.11860 (adaptive
    stop, Beta criterion).
    """

    name: ClassVar[str] = "self-consistency"

    n: int = option(16, "chains to sample", minimum=1)
    vote: str = option("majority", "count the chains, or sum their values", choices=("majority", "weighted"))
    aggregate: str = option("last", "value of a chain from its steps' rewards", choices=AGGREGATES)
    converge: float | None = option(
        None, "stop when the leading answer is this certain to stay ahead; default never", minimum=0.5, maximum=1
    )

    def __post_init__(self) -> None:
        super().__init__(self.n)
        self._ends: dict[int, Node] = {}
        self._counted: list[Node] = []
        """Ends of chains 0, 1, … as far as they are all finished."""
        self._tally: Counter[str] = Counter()
        self._converged = False

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        leaving = super().tell(tree, expand, node)
        if node.terminal is not None:
            self._ends[id_order(node.id)[1]] = node
            while not self._converged and len(self._counted) in self._ends:
                self._enter(self._ends[len(self._counted)])
        return leaving

    def done(self, tree: SearchTree) -> bool:
        return self._converged or super().done(tree)

    def best(self, tree: SearchTree) -> Node | None:
        among = self._counted if self._converged else None
        return choose(tree, vote=self.vote, worth=lambda node: value(node, self.aggregate), among=among)

    def _enter(self, end: Node) -> None:
        self._counted.append(end)
        if end.answer is not None:
            self._tally[end.answer] += 1
        if self.converge is not None:
            (_, first), (_, second) = [*self._tally.most_common(2), ("", 0), ("", 0)][:2]
            self._converged = certainty(first, second) >= self.converge


def certainty(first: int, second: int) -> float:
    """P(Beta(first + 1, second + 1) > 1/2): how likely the first answer stays the more frequent one."""
    draws = first + second + 1
    scale = math.lgamma(draws + 1) - draws * math.log(2)
    behind = sum(math.exp(scale - math.lgamma(k + 1) - math.lgamma(draws - k + 1)) for k in range(second + 1))
    return 1 - behind
