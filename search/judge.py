"""Judging finished steps: where a path ends, what its answer is, what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

from .protocols import Scorer, SharingScorer, Step, Task, Verifier
from .tree import Node, SearchTree


class BadReward(ValueError):
    """A scorer that gave what is no number in [0, 1]."""


class Judge:
    """Sets `terminal`, `answer`, `verified` and `reward` of new nodes. Each answer is verified once."""

    def __init__(
        self, task: Task, scorer: Scorer | None, verifier: Verifier | None, *, steer: bool, max_depth: int
    ) -> None:
        self._task = task
        self._scorer = scorer
        self._verifier = verifier
        self._steer = steer
        self._max_depth = max_depth
        self._verdicts: dict[str, bool] = {}

    def end(self, node: Node) -> None:
        """Set `terminal`, `answer` and `verified` where the node ends its path. Without an answer it is refuted."""
        if node.finish != "step":
            node.terminal = node.finish
        elif node.depth >= self._max_depth:
            node.terminal = "length"
        else:
            return
        node.answer = self._task.answer(node.path_text)
        if self._verifier is None:
            return
        if node.answer is None:
            node.verified = False
            return
        if node.answer not in self._verdicts:
            self._verdicts[node.answer] = self._verifier.verify(node.answer)
        node.verified = self._verdicts[node.answer]

    def ask(self, fresh: Sequence[tuple[Step, Node]], tree: SearchTree) -> bool:
        """Tell the scorer what `reward` will be called for, where it can use that; whether it was told."""
        judged = self._unjudged(fresh)
        if not judged or not isinstance(self._scorer, SharingScorer):
            return False
        self._scorer.ask([node for _, node in judged], tree)
        return True

    def reward(self, fresh: Sequence[tuple[Step, Node]], tree: SearchTree) -> None:
        """Set `reward`: the verdict where the verifier steers and a path has ended, else the scorer's value, in one
        call for all. Raises BadReward for a value outside of [0, 1]."""
        for _, node in fresh:
            if self._steer and node.verified is not None:
                node.reward = float(node.verified)
        judged = self._unjudged(fresh)
        if not judged:
            return
        for (_, node), reward in zip(judged, self._values(judged, tree), strict=True):
            if reward is not None and not -1e-6 <= reward <= 1 + 1e-6:
                name = self._scorer.name if self._scorer is not None else "the generator"
                raise BadReward(f"{name} gave node {node.id} the reward {reward}, outside of [0, 1]")
            node.reward = None if reward is None else min(max(reward, 0.0), 1.0)

    def _unjudged(self, fresh: Sequence[tuple[Step, Node]]) -> list[tuple[Step, Node]]:
        """Those that the scorer values."""
        return [(step, node) for step, node in fresh if not (self._steer and node.verified is not None)]

    def _values(self, judged: Sequence[tuple[Step, Node]], tree: SearchTree) -> Sequence[float | None]:
        if self._scorer is None:
            return [step.reward for step, _ in judged]
        return self._scorer.score([node for _, node in judged], [step for step, _ in judged], tree)

    def solves(self, node: Node) -> bool:
        """Whether the node's answer ends the search."""
        return self._steer and node.verified is True
