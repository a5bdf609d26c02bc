"""Which node answers: values of paths, and the choice among finished ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from .events import id_order
from .tree import Node, SearchTree

AGGREGATES = ("last", "min", "mean", "product")
VOTES = ("best", "weighted", "majority")


def aggregate(node: Node, how: str) -> float:
    """One value of a path from the rewards of its steps: the last, the least, their mean or their product.

    Steps without a reward do not count; a path without any is worth 0.
    """
    if how == "last":
        return node.reward or 0.0
    rewards = [step.reward for step in node.path() if step.reward is not None]
    if not rewards:
        return 0.0
    if how == "min":
        return min(rewards)
    if how == "mean":
        return sum(rewards) / len(rewards)
    return math.prod(rewards)


def value(node: Node, how: str = "last") -> float:
    """What reaching `node` is worth, in [0, 1]. A finished path without an answer cannot be chosen and is worth 0."""
    if node.terminal is not None and node.answer is None:
        return 0.0
    return aggregate(node, how)


def choose(
    tree: SearchTree,
    *,
    vote: str = "best",
    worth: Callable[[Node], float] = value,
    among: Iterable[Node] | None = None,
) -> Node | None:
    """The node that answers: a finished path with an answer, else a finished path, else the best leaf so far.

    Vote 'best' takes the highest worth; 'weighted' the answer with the largest sum of worths, 'majority' the answer
    that most paths gave (then the larger sum), each with its best path. Ties go to more visits, then to the first id.
    None while the tree has only its root.
    """
    finished = list(tree.terminals if among is None else among)
    answered = [node for node in finished if node.answer is not None]
    if answered and vote != "best":
        tally: dict[str, tuple[float, float]] = {}
        for node in sorted(answered, key=lambda node: id_order(node.id)):  # float sums depend on their order
            count, total = tally.get(node.answer or "", (0.0, 0.0))
            tally[node.answer or ""] = (count + 1, total + worth(node))
        if vote == "weighted":
            tally = {answer: (total, count) for answer, (count, total) in tally.items()}
        most = max(tally.values())
        answered = [node for node in answered if tally[node.answer or ""] == most]
    candidates = answered or finished or [node for node in tree if not node.children and node.parent is not None]
    return min(candidates, key=lambda node: rank(node, worth), default=None)


def rank(node: Node, worth: Callable[[Node], float] = value) -> tuple[Any, ...]:
    """Sort key, best first: worth, then visits, then the order of ids."""
    return (-worth(node), -node.visits, id_order(node.id))


def votes(tree: SearchTree, node: Node) -> int:
    """Finished paths that give the answer of `node`; 0 without an answer."""
    return sum(other.answer == node.answer for other in tree.terminals) if node.answer is not None else 0
