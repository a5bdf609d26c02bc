"""The model's own process reward, which the engine reads while it generates."""

from __future__ import annotations

from collections.abc import Sequence

from frtool.search.protocols import Step
from frtool.search.tree import Node, SearchTree


class StepRewardScorer:
    """P(good) / (P(good) + P(bad)) after the query token behind the path."""

    name = "reward"

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        """Raises ValueError for a step whose reward was not read."""
        rewards = []
        for step in steps:
            if step.reward is None:
                raise ValueError(f"step {step.parent}.{step.ordinal} came without a reward")
            rewards.append(step.reward)
        return rewards
