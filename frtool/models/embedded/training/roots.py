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
    """Numbers are uniform from 1 to this."""
    u = np.random.random()
    return 13 if u < 0.38 else (25 if u < 0.48 else 100)


@jit
def draw_target_range(highest: int) -> tuple[int, int]:
    """24 is drawn more often than others: its puzzles of four small numbers are held out, their neighbours are not."""
    small = highest <= 25
    u = np.random.random()
    if u < (0.2 if small else 0.04):
        return 24, 24
    if small and u < 0.5:
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
        lost = np.random.random() < LOST_SHARES[count - MIN_NUMBERS]
        for _ in range(_TRIES[count - MIN_NUMBERS]):
            for i in range(count):
                state[i] = np.random.randint(1, highest + 1)
            if highest == 13 and count == 4 and low_target == high_target and not (forward or validation):
                # Game of 24 is held out whole; its nearest neighbours have one larger number.
                state[0] = np.random.randint(14, 50)
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
