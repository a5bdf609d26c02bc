"""Lookahead: one greedy rollout of a few steps from each of some nodes, to value them by where they lead."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .protocols import Expand
from .tree import Node, SearchTree


@dataclass(slots=True, eq=False)
class Rollout:
    """`at` is as far as the rollout of `node` has come; `left` steps are to follow."""

    node: Node
    at: Node
    left: int


class Lookahead:
    """The rollouts under way, and the steps that they want next, in order. Results must be told in that order."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._running: deque[Rollout] = deque()
        self._queue: deque[Expand] = deque()
        self._ends: dict[Node, Node] = {}

    def __len__(self) -> int:
        """Rollouts that are not finished."""
        return len(self._running)

    def begin(self, tree: SearchTree, node: Node) -> None:
        """Roll `node` out. A child that it has already is followed before a new one is asked for."""
        self._go(tree, Rollout(node, node, self._steps))

    def take(self, room: int) -> list[Expand]:
        return [self._queue.popleft() for _ in range(min(room, len(self._queue)))]

    def tell(self, tree: SearchTree, node: Node) -> None:
        """The next step in the order of asking came back as `node`; for a duplicate, the rollout goes on from there."""
        rollout = self._running.popleft()
        rollout.at = node
        rollout.left -= 1
        self._go(tree, rollout)

    def end(self, node: Node) -> Node:
        """Where the rollout of `node` ended; the node itself where there was none."""
        return self._ends.get(node, node)

    def _go(self, tree: SearchTree, rollout: Rollout) -> None:
        while rollout.left and rollout.at.children:
            rollout.at = rollout.at.children[0]
            rollout.left -= 1
        if rollout.left and rollout.at.state == "open":
            self._queue.append(tree.want(rollout.at, greedy=True))
            self._running.append(rollout)
        else:
            self._ends[rollout.node] = rollout.at
