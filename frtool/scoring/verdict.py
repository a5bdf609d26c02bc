"""A verifier's verdict as the score of a finished path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from frtool.search.protocols import Scorer, Step, Task, Verifier
from frtool.search.tree import Node, SearchTree


@runtime_checkable
class GradedVerifier(Verifier, Protocol):
    """A verifier that can say how good an answer is."""

    def score(self, answer: str) -> float:
        """In [0, 1]."""


class VerdictScorer:
    """1 or 0 for a path that has ended, by its answer, or the grade of a verifier that gives grades; for a path that
    goes on `inner`'s score, or 1/2 without one.

    A path cut by a limit has ended: without an answer it is wrong. This scorer steers by a rule outside the model.
    """

    def __init__(self, task: Task, verifier: Verifier, inner: Scorer | None = None) -> None:
        self.name = verifier.name
        self._task = task
        self._verifier = verifier
        self._inner = inner
        self._verdicts: dict[str, float] = {}

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        going = [(node, step) for node, step in zip(nodes, steps, strict=True) if not _over(node)]
        values = [0.5] * len(going)
        if self._inner is not None and going:
            values = self._inner.score([node for node, _ in going], [step for _, step in going], tree)
        rest = iter(values)
        return [self._verdict(node) if _over(node) else next(rest) for node in nodes]

    def _verdict(self, node: Node) -> float:
        answer = self._task.answer(node.path_text)
        if answer is None:
            return 0.0
        if answer not in self._verdicts:
            verifier = self._verifier
            if isinstance(verifier, GradedVerifier):
                self._verdicts[answer] = verifier.score(answer)
            else:
                self._verdicts[answer] = float(verifier.verify(answer))
        return self._verdicts[answer]


def _over(node: Node) -> bool:
    return node.terminal is not None or node.finish != "step"
