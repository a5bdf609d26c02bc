"""Best-of-n: sample whole answers, keep the one that the scorer likes best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .chains import Chains
from .options import option
from .select import AGGREGATES, choose, value
from .tree import Node, SearchTree


@dataclass
class BestOfN(Chains):
    """`n` independent chains; the answer is argmax over chains of aggregate(rewards of the chain's steps).

    Vote 'weighted' takes argmax over answers of the sum of those values instead (weighted best-of-n).
    Source: Cobbe et al. 2021, arXiv 2110.14168 (verifier reranking); Li et al. 2023, arXiv 2206.02336 (weighted vote).
    """

    name: ClassVar[str] = "best-of-n"

    n: int = option(16, "chains to sample", minimum=1)
    aggregate: str = option("last", "value of a chain from its steps' rewards", choices=AGGREGATES)
    vote: str = option("best", "take the best chain, or the answer with the largest sum", choices=("best", "weighted"))

    def __post_init__(self) -> None:
        super().__init__(self.n)

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree, vote=self.vote, worth=lambda node: value(node, self.aggregate))
