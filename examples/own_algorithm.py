"""An algorithm and a verifier of your own: depth-first search with backtracking, for answers without a division.

Run it with `python examples/own_algorithm.py`.
"""

from __future__ import annotations

import frtool
from frtool.search.protocols import Expand
from frtool.search.select import choose
from frtool.search.tree import Node, SearchTree
from frtool.tasks.puzzle import parse_puzzle
from frtool.verify.arithmetic import ArithmeticVerifier


class DepthFirst:
    """Samples `width` children of a step and goes on from the best; where all are worth less than `threshold`, it goes
    back to the best that is left. It ends with a finished path worth `accept`. (Yao et al. 2023, arXiv 2305.10601.)

    The protocol is `frtool.search.protocols.Algorithm`: `ask` says which steps are wanted, `tell` brings them one by
    one, and no model is in sight.
    """

    name = "depth-first"
    greedy = False
    merges = True
    ordered = True

    def __init__(self, width: int = 8, threshold: float = 0.05, accept: float = 0.9) -> None:
        self.width, self.threshold, self.accept = width, threshold, accept
        self.stack: list[Node] | None = None
        """Steps to go on from, the next one last; None before the first ask."""
        self.node: Node | None = None
        self.wanted = self.waiting = 0
        self.children: list[Node] = []

    def ask(self, tree: SearchTree, room: int) -> list[Expand]:
        if not self.wanted and not self.waiting:
            if self.stack is None:
                self.stack = [tree.root]
            if not self.stack:
                return []  # with nothing under way either, the tree is exhausted
            self.node, self.wanted = self.stack.pop(), self.width
        assert self.node is not None
        count = min(room, self.wanted)
        self.wanted -= count
        self.waiting += count
        return [tree.want(self.node) for _ in range(count)]

    def tell(self, tree: SearchTree, expand: Expand, node: Node) -> list[Node]:
        self.waiting -= 1
        leaving = []
        if node.id == expand.id and node.terminal is None:  # neither a copy of a node nor the end of a path
            if (node.reward or 0.0) >= self.threshold:
                self.children.append(node)
            else:
                leaving.append(tree.leave(node, "pruned", "threshold"))
        if not self.wanted and not self.waiting:
            assert self.stack is not None
            assert self.node is not None
            self.stack += sorted(self.children, key=lambda child: child.reward or 0.0)
            self.children = []
            if self.node is not tree.root:
                leaving.append(tree.leave(self.node, "expanded"))
        return leaving

    def done(self, tree: SearchTree) -> str | None:
        good = any(node.answer is not None and (node.reward or 0.0) >= self.accept for node in tree.terminals)
        return "accepted" if good else None

    def best(self, tree: SearchTree) -> Node | None:
        return choose(tree)


class NoDivision:
    """Right answers without a division; the protocol is `frtool.search.protocols.Verifier`."""

    name = "no-division"

    def __init__(self, prompt: str) -> None:
        puzzle = parse_puzzle(prompt)
        assert puzzle is not None, "the prompt is no arithmetic puzzle"
        self._rule = ArithmeticVerifier(puzzle)

    def verify(self, answer: str) -> bool:
        return "/" not in answer and self._rule.verify(answer)


def main() -> frtool.SearchResult:
    """One search with both. The verifier only grades; `steer=True` would let it guide and stop the search."""
    prompt = "Make 24 from 4, 5, 6, 10"
    return frtool.search(prompt, algorithm=DepthFirst(), verifier=NoDivision(prompt), budget=frtool.Budget(steps=96))


if __name__ == "__main__":
    result = main()
    print(result.answer, result.verified, result.reason, f"{result.usage.nodes} nodes")
