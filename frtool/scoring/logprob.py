"""How likely the model finds its own path."""

from __future__ import annotations

import math
from collections.abc import Sequence

from frtool.search.protocols import Step
from frtool.search.tree import Node, SearchTree


class LogprobScorer:
    """exp of the mean log-probability of the path's tokens: their geometric mean probability, in (0, 1]."""

    name = "logprob"

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        return [math.exp(min(node.path_logprob / node.path_tokens, 0.0)) if node.path_tokens else 1.0 for node in nodes]
