"""Self-consistency: sample whole answers and take the one that most of them agree on."""

from __future__ import annotations

import heapq
import math
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
    With `vote` weighted it is the one of the larger sum of values, then of more chains.

    With `converge` c it stops as soon as the chains that finished, in the order of their ids and without a gap, settle
    it: where the two leading answers have v1 and v2 votes, or sums of values, the probability under a uniform prior
    that the first stays ahead of the second is

        P(Beta(v1 + 1, v2 + 1) > 1/2) >= c,

    for whole numbers 1 - sum_{k <= v2} C(v1 + v2 + 1, k) / 2^(v1 + v2 + 1); or the chains that lack are fewer than
    v1 - v2, so that no chain can change it (a value is at most 1).

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
        self._tally: dict[str, float] = {}
        """Votes, or sums of values, of the counted chains."""
        self._converged = False

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        leaving = super().tell(tree, expand, node)
        if node.terminal is not None:
            self._ends[id_order(node.id)[1]] = node
            while not self._converged and len(self._counted) in self._ends:
                self._enter(self._ends[len(self._counted)])
        return leaving

    def done(self, tree: SearchTree) -> str | None:
        return "converged" if self._converged else super().done(tree)

    def best(self, tree: SearchTree) -> Node | None:
        among = self._counted if self._converged else None
        return choose(tree, vote=self.vote, worth=self._worth, among=among)

    def _worth(self, node: Node) -> float:
        return value(node, self.aggregate)

    def _enter(self, end: Node) -> None:
        self._counted.append(end)
        if end.answer is not None:
            vote = self._worth(end) if self.vote == "weighted" else 1
            self._tally[end.answer] = self._tally.get(end.answer, 0) + vote
        if self.converge is not None:
            first, second = heapq.nlargest(2, [*self._tally.values(), 0, 0])
            settled = first - second > self.n - len(self._counted)
            self._converged = settled or certainty(first, second) >= self.converge


def certainty(first: float, second: float) -> float:
    """P(Beta(first + 1, second + 1) > 1/2): how likely the first of two shares stays the larger one; first >= second.

    One minus the regularised incomplete beta function at 1/2, by its continued fraction (DLMF 8.17.22) with Lentz's
    method.
    """
    a, b, x, tiny = first + 1, second + 1, 0.5, 1e-300
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a + b) * math.log(x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 100_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-13:
            break
    return 1 - scale * fraction
