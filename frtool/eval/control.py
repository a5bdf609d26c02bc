"""The control that a model has to beat: random legal steps, and a verifier that never errs."""

from __future__ import annotations

import random
from dataclasses import dataclass

from frtool.tasks.puzzle import Puzzle

from .solve import successors

RANDOM_POLICY = "random-policy"


@dataclass(frozen=True, slots=True)
class Control:
    """What came of the rollouts on one puzzle."""

    solved: bool
    steps: int
    rollouts: int


def random_rollouts(puzzle: Puzzle, steps: int, seed: int, id: str = "") -> Control:
    """Rollouts of evenly drawn legal steps, until one ends at the target or another would need more than `steps`.

    The same draws on every machine, keyed by the seed and the problem's id.
    """
    draw = random.Random(f"{seed}/{id}/{puzzle.numbers}/{puzzle.target}")
    length = len(puzzle.numbers) - 1
    rollouts = max(steps // length, 1)
    for tried in range(1, rollouts + 1):
        state = tuple(sorted(puzzle.numbers))
        while len(state) > 1:
            state = draw.choice(successors(state))
        if state[0] == puzzle.target:
            return Control(True, tried * length, tried)
    return Control(False, rollouts * length, rollouts)
