"""Which puzzles the embedded model never trains on. The rule decides by the puzzle alone, so anybody can test on them.

Plain integer arithmetic below 2**53: the training generator compiles these functions as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence

_MODULUS = 2_147_483_647
_SHARES = 16


def stable_hash(numbers: Sequence[int], target: int) -> int:
    """A hash below 2**31 of the sorted numbers and the target; the same on every machine and release."""
    value = 17
    for number in numbers:
        value = (value * 48_271 + number * 69_621 + 12_345) % _MODULUS
    value = (value * 48_271 + target * 69_621 + 54_321) % _MODULUS
    for _ in range(2):
        value = ((value ^ (value >> 15)) * 1_000_003) % _MODULUS
    return value


def is_game_of_24(numbers: Sequence[int], target: int) -> bool:
    return len(numbers) == 4 and target == 24 and numbers[3] <= 13


def is_held_hash(value: int) -> bool:
    return (value >> 5) % _SHARES == 0


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Whether the puzzle of these sorted numbers is kept out of all training.

    Held out: four numbers of at most 13 with target 24 (the whole Game of 24), and one puzzle in sixteen by its hash.
    """
    return is_game_of_24(numbers, target) or is_held_hash(stable_hash(numbers, target))
