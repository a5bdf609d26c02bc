"""Which puzzles are trained on: how their numbers and targets are drawn, and what is never drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import jit
from .moves import Moves, held_out, list_moves, replace_pair
from .solve import pair_value

MIN_NUMBERS = 3
COUNT_SHARES = (0.08, 0.58, 0.21, 0.13)
"""Shares of puzzles with 3, 4, 5 and 6 numbers."""
FORWARD_SHARES = (0.2, 0.2, 0.4, 0.5)
"""Of those, how many have a target that random operations made, rather than a uniform one."""
LOST_SHARES = (0.04, 0.14, 0.12, 0.03)
"""Puzzles that cannot be solved: roots for the reward to judge. Few sets of six numbers are any."""
MAX_TARGET = 999
SMALL_SHARE = 0.5
LEAST_HIGHEST = 10
SMALL_HIGHEST = 40
"""Half the puzzles have numbers up to one of these, evenly; the others up to 100."""
TARGET_24_SHARE = 0.05
NEAREST_HIGHEST = 24
_TRIES = (3_000, 1_000, 200, 30)
"""Draws from the same ranges, by count, before other ranges are drawn."""


@jit
def draw_count() -> int:
    u = np.random.random()
    for i in range(3):
        if u < COUNT_SHARES[i]:
            return MIN_NUMBERS + i
        u -= COUNT_SHARES[i]
    return MIN_NUMBERS + 3


@jit
def draw_highest() -> int:
    """Numbers are uniform from 1 to this. It is spread: there are so few sets of small numbers that a model that is
    shown little else learns them by heart, and the rule for none."""
    return np.random.randint(LEAST_HIGHEST, SMALL_HIGHEST + 1) if np.random.random() < SMALL_SHARE else 100


@jit
def draw_target_range(highest: int) -> tuple[int, int]:
    """24 is drawn somewhat more often than its neighbours, but not so often that its puzzles are learnt by heart."""
    small = highest <= SMALL_HIGHEST
    u = np.random.random()
    if u < TARGET_24_SHARE:
        return 24, 24
    if small and u < 0.45:
        return 10, 40
    return (10, 100) if u < (0.8 if small else 0.6) else (1, MAX_TARGET)


@jit
def forward_target(state: NDArray[Any], count: int, chain: bool, scratch: NDArray[Any], other: NDArray[Any]) -> int:
    """What random operations make of the numbers: each on the result of the last (`chain`), or on any two."""
    for i in range(count):
        scratch[i] = state[i]
    value = -1
    for left in range(count, 1, -1):
        i = np.random.randint(0, left)
        if chain and value >= 0:
            i = 0
            while scratch[i] != value:
                i += 1
        j = np.random.randint(0, left - 1)
        j += j >= i
        value = pair_value(scratch[i], scratch[j], np.random.randint(0, 4))
        if value < 0:
            value = scratch[i] + scratch[j] if np.random.random() < 0.5 else abs(scratch[i] - scratch[j])
        replace_pair(scratch, left, min(i, j), max(i, j), value, other)
        for k in range(left - 1):
            scratch[k] = other[k]
    return int(scratch[0])


@jit
def draw_puzzle(
    state: NDArray[Any], scratch: NDArray[Any], other: NDArray[Any], moves: Moves, validation: bool
) -> tuple[int, int, int, bool]:
    """Draw a puzzle into `state`: (count, target, number of first moves, solvable), with the moves in `moves`.

    A training puzzle is never held out, a validation puzzle always is. Count and ranges are drawn first and kept
    while draws are refused, so that they keep their shares; only ranges that admit nothing are drawn again.
    """
    while True:
        count = draw_count()
        highest = draw_highest()
        forward = np.random.random() < FORWARD_SHARES[count - MIN_NUMBERS]
        chain = np.random.random() < 0.6
        low_target, high_target = draw_target_range(highest)
        if low_target == high_target and count == 4 and highest <= 13 and not validation:
            # Game of 24 is held out whole; its neighbours have larger numbers.
            highest = np.random.randint(14, NEAREST_HIGHEST + 1)
        lost = np.random.random() < LOST_SHARES[count - MIN_NUMBERS]
        for _ in range(_TRIES[count - MIN_NUMBERS]):
            for i in range(count):
                state[i] = np.random.randint(1, highest + 1)
            state[:count].sort()
            if forward and not lost:
                target = forward_target(state, count, chain, scratch, other)
                if not 1 <= target <= MAX_TARGET or (target < 100 and np.random.random() < 0.5):
                    continue
            else:
                target = np.random.randint(low_target, high_target + 1)
            if held_out(state, count, target) != validation:
                continue
            n = list_moves(state, count, target, not validation, moves)
            alive = False
            for m in range(n):
                alive = alive or moves.good[m]
            if alive != lost:
                return count, target, n, alive
