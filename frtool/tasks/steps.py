"""The step text of the embedded model: one move a line, with the numbers that remain.

`10-4=6 (5 6 6)` combines two numbers of the state into one. A derivation is the puzzle's numbers followed by such
lines until one number remains. Values are whole and not negative, and division is exact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

MAX_PATH_CHARS = 4_000
_LINE = re.compile(
    r"(?P<left>\d{1,12})(?P<op>[-+*/])(?P<right>\d{1,12})=(?P<result>\d{1,12}) "
    r"\((?P<state>\d{1,12}(?: \d{1,12}){0,15})\)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Move:
    """What one line claims. `state` is sorted; `left >= right` for + and *."""

    left: int
    operator: str
    right: int
    result: int
    state: tuple[int, ...]


@lru_cache(1024)
def parse_move(line: str) -> Move | None:
    """The move that a line claims, in canonical order, right or wrong; None if it has another form."""
    match = _LINE.fullmatch(line.strip("\n")) if len(line) <= MAX_PATH_CHARS else None
    if match is None:
        return None
    left, right, operator = int(match["left"]), int(match["right"]), match["op"]
    if operator in "+*" and left < right:
        left, right = right, left
    state = tuple(sorted(int(value) for value in match["state"].split(" ")))
    return Move(left, operator, right, int(match["result"]), state)


def combine(left: int, operator: str, right: int) -> int | None:
    """The exact value, or None where it would be negative, fractional or undefined."""
    if operator == "+":
        return left + right
    if operator == "*":
        return left * right
    if operator == "-":
        return left - right if left >= right else None
    if right == 0 or left % right:
        return None
    return left // right


def is_legal(move: Move, state: Sequence[int]) -> bool:
    """Whether the move takes two numbers of `state`, computes rightly and lists exactly what remains."""
    remaining = list(state)
    for operand in (move.left, move.right):
        if operand not in remaining:
            return False
        remaining.remove(operand)
    remaining.append(move.result)
    return combine(move.left, move.operator, move.right) == move.result and sorted(remaining) == list(move.state)


def follow(numbers: Sequence[int], text: str) -> list[Move] | None:
    """The moves of a path's text from the puzzle's numbers on, or None if any line is not a legal move."""
    if len(text) > MAX_PATH_CHARS:
        return None
    moves = _follow(tuple(numbers), text.removesuffix("\n")) if text else ()
    return None if moves is None else list(moves)


@lru_cache(1024)
def _follow(numbers: tuple[int, ...], text: str) -> tuple[Move, ...] | None:
    """A search asks for each path again with one line more."""
    before, newline, line = text.rpartition("\n")
    move = parse_move(line)
    if move is None or text.count("\n") >= len(numbers):  # a legal move leaves one number less
        return None
    moves = _follow(numbers, before) if newline else ()
    if moves is None or not is_legal(move, moves[-1].state if moves else numbers):
        return None
    return (*moves, move)


_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_ATOM = 3


def expression(numbers: Sequence[int], moves: Sequence[Move]) -> str | None:
    """The one expression that legal moves build, with the fewest parentheses; None while several numbers remain.

    Where a move can take either of two equal numbers, it takes the one written shorter.
    """
    pool: list[tuple[int, str, int]] = [(value, str(value), _ATOM) for value in numbers]
    for move in moves:
        left, right = _take(pool, move.left), _take(pool, move.right)
        level = _PRECEDENCE[move.operator]
        written_left = left[1] if left[2] >= level else f"({left[1]})"
        # a-(b+c) and a/(b*c) need theirs; a+(b-c) and a*(b/c) do not: every division is exact.
        loose = right[2] > level or (right[2] == level and move.operator in "+*")
        written_right = right[1] if loose else f"({right[1]})"
        pool.append((move.result, f"{written_left}{move.operator}{written_right}", level))
    return pool[0][1] if len(pool) == 1 else None


def _take(pool: list[tuple[int, str, int]], value: int) -> tuple[int, str, int]:
    chosen = min((entry for entry in pool if entry[0] == value), key=lambda entry: len(entry[1]))
    pool.remove(chosen)
    return chosen
