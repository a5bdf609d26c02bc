"""A scorer of your own: the model's reward, but nothing for a step whose arithmetic is wrong.

Run it with `python examples/own_scorer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import frtool
from frtool.search.protocols import Step
from frtool.search.tree import Node, SearchTree

STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+) ")


class RightSteps:
    """Values the path that ends in each node, in [0, 1]; the protocol is `frtool.search.protocols.Scorer`."""

    name = "right-steps"
    reads_rewards = True
    """Ask the engine to read the model's own process reward: it stands in `step.reward`."""

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        return [
            (step.reward or 0.0) * all(is_right(above.text) for above in node.path()[1:])
            for node, step in zip(nodes, steps, strict=True)
        ]


def is_right(text: str) -> bool:
    match = STEP.match(text)
    if match is None:
        return False
    a, operator, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
    if operator == "/":
        return b != 0 and a == b * result
    return {"+": a + b, "-": a - b, "*": a * b}[operator] == result


def main() -> frtool.SearchResult:
    """One search with it. The events could be watched as they come: `on_event=print`."""
    return frtool.search(
        "Use 3 7 25 50 to reach 372",
        algorithm="beam",
        options={"width": 12, "keep": 3, "oversample": 1.3},
        budget=frtool.Budget(steps=48),
        scorer=RightSteps(),
    )


if __name__ == "__main__":
    result = main()
    print(result.answer, result.verified, result.score, result.reason)
    print(*result.steps, sep="", end="")
