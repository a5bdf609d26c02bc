"""Scorers: what judges a finished step."""

from .logprob import LogprobScorer
from .step_reward import StepRewardScorer
from .verdict import VerdictScorer

__all__ = ["LogprobScorer", "StepRewardScorer", "VerdictScorer"]
