"""Held-out puzzles to judge a model by, drawn in pure Python from a seed."""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Callable
from importlib.resources import files

import numpy as np

from frtool.tasks.held_out import is_held_out
from frtool.tasks.puzzle import Puzzle
from frtool.tasks.steps import combine

from .solve import solvable


def is_solvable(numbers: tuple[int, ...], target: int) -> bool:
    """Exact, over whole numbers that are not negative."""
    if len(numbers) <= 5:
        return solvable(np.array(numbers, np.int64), len(numbers), target)
    for i, j in itertools.combinations(range(len(numbers)), 2):
        rest = [value for k, value in enumerate(numbers) if k not in (i, j)]
        left, right = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        for operator in "+-*/":
            value = combine(left, operator, right)
            if value is not None and is_solvable((*rest, value), target):
                return True
    return False


def game_of_24(count: int, seed: int) -> list[Puzzle]:
    """Distinct sets of four numbers from 1 to 13 that make 24, at most `count` of the 1,246 that are left when those of
    `frtool eval game24` are taken out: what is judged here may choose a training."""
    text = (files("frtool.eval") / "game24.csv").read_text("utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    reported = {tuple(sorted(map(int, row["numbers"].split()))) for row in rows}
    numbers = itertools.combinations_with_replacement(range(1, 14), 4)
    every = [n for n in numbers if n not in reported and is_solvable(n, 24)]
    return [Puzzle(n, 24) for n in random.Random(seed).sample(every, min(count, len(every)))]


def countdown_four(count: int, seed: int) -> list[Puzzle]:
    """Four numbers 1…99, target 10…100, uniform over the solvable ones that the hash holds out."""

    def draw(rng: random.Random) -> tuple[list[int], int]:
        return [rng.randint(1, 99) for _ in range(4)], rng.randint(10, 100)

    return _held_out(draw, count, seed)


def countdown_generated(count: int, seed: int, numbers: int) -> list[Puzzle]:
    """Numbers 1…100 with a target 100…999 that random operations from left to right made, held out by the hash.

    The manner of reasoning-gym's countdown task with its default options.
    """

    def draw(rng: random.Random) -> tuple[list[int], int]:
        values = [rng.randint(1, 100) for _ in range(numbers)]
        result = values[0]
        for value in values[1:]:
            operator = rng.choice("+-*/")
            if operator == "/" and result % value:
                operator = "-"
            result = {"+": result + value, "-": result - value, "*": result * value, "/": result // value}[operator]
        return values, result if 100 <= result <= 999 else 0

    return _held_out(draw, count, seed)


def _held_out(draw: Callable[[random.Random], tuple[list[int], int]], count: int, seed: int) -> list[Puzzle]:
    rng = random.Random(seed)
    puzzles: dict[tuple[tuple[int, ...], int], None] = {}
    while len(puzzles) < count:
        values, target = draw(rng)
        numbers = tuple(sorted(values))
        if target > 0 and is_held_out(numbers, target) and is_solvable(numbers, target):
            puzzles[numbers, target] = None
    return [Puzzle(numbers, target) for numbers, target in puzzles]
