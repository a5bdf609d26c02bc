"""All legal moves of a state: what each leads to, whether the target stays in reach, and how each is written."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from frtool.tasks.held_out import is_game_of_24, is_held_hash, stable_hash

from .compiled import jit
from .solve import count2, count3, count4, pair_value, solvable, solve4
from .vocabulary import CLOSE, DIGIT_0, EQUALS, OPEN, PLUS, SPACE

MAX_COUNT = 6
MAX_MOVES = 64
"""Six numbers have 15 pairs and four operations."""
MAX_LINE = 64
MAX_VALUE = 99_999
"""Moves to larger values are legal but hardly ever of use; the generator leaves them out."""
SHARPNESS = 0.75
"""Of the policy's target: 0 weighs all winning moves alike, 1 by the number of ways that they leave."""

_OPERATORS = np.array([PLUS, PLUS + 1, PLUS + 2, PLUS + 3], np.uint8)  # + - * / stand in a row


class Moves(NamedTuple):
    """The moves of one state; room for one state per number of operands left."""

    operands: NDArray[Any]
    """int64 [MAX_MOVES, 4]: left, operator 0…3, right, result."""
    states: NDArray[Any]
    """int64 [MAX_MOVES, MAX_COUNT], sorted: what remains after each move."""
    good: NDArray[Any]
    """bool [MAX_MOVES]: the target can still be made."""
    barred: NDArray[Any]
    """bool [MAX_MOVES]: leads to a puzzle that is held out, so it is never shown."""
    weight: NDArray[Any]
    """float64 [MAX_MOVES]: share of the policy's target, 0 for moves that lose the target or are barred, and for all
    moves of a state that `list_moves` gives no target."""
    text: NDArray[Any]
    """uint8 [MAX_MOVES, MAX_LINE]: the line in tokens, without its end."""
    length: NDArray[Any]
    """int64 [MAX_MOVES]"""
    equals: NDArray[Any]
    """int64 [MAX_MOVES]: index of `=` in the line; everything behind it follows from what stands before."""


def new_moves() -> Moves:
    return Moves(
        np.zeros((MAX_MOVES, 4), np.int64),
        np.zeros((MAX_MOVES, MAX_COUNT), np.int64),
        np.zeros(MAX_MOVES, np.bool_),
        np.zeros(MAX_MOVES, np.bool_),
        np.zeros(MAX_MOVES, np.float64),
        np.zeros((MAX_MOVES, MAX_LINE), np.uint8),
        np.zeros(MAX_MOVES, np.int64),
        np.zeros(MAX_MOVES, np.int64),
    )


_stable_hash = jit(stable_hash)
_is_game_of_24 = jit(is_game_of_24)
_is_held_hash = jit(is_held_hash)


@jit
def held_out(state: NDArray[Any], count: int, target: int) -> bool:
    """`is_held_out` for the first `count` numbers. Two numbers are plain arithmetic and never held out."""
    if count < 3:
        return False
    numbers: Any = state[:count]
    return _is_game_of_24(numbers, target) or _is_held_hash(_stable_hash(numbers, target))


@jit
def write_number(line: NDArray[Any], at: int, value: int) -> int:
    """Write the digits of `value` from `at` on; the position behind them."""
    digits = 1
    power = 10
    while value >= power:
        power *= 10
        digits += 1
    for i in range(digits):
        line[at + digits - 1 - i] = DIGIT_0 + value % 10
        value //= 10
    return at + digits


@jit
def write_state(line: NDArray[Any], at: int, state: NDArray[Any], count: int) -> int:
    for i in range(count):
        if i > 0:
            line[at] = SPACE
            at += 1
        at = write_number(line, at, state[i])
    return at


@jit
def write_line(
    line: NDArray[Any], left: int, operator: int, right: int, result: int, state: NDArray[Any], count: int
) -> tuple[int, int]:
    """Write `left operator right=result (state)`; its length and the index of `=`."""
    at = write_number(line, 0, left)
    line[at] = _OPERATORS[operator]
    equals = write_number(line, at + 1, right)
    line[equals] = EQUALS
    at = write_number(line, equals + 1, result)
    line[at] = SPACE
    line[at + 1] = OPEN
    at = write_state(line, at + 2, state, count)
    line[at] = CLOSE
    return at + 1, equals


@jit
def replace_pair(state: NDArray[Any], count: int, i: int, j: int, result: int, out: NDArray[Any]) -> None:
    """`out` = sorted `state` without its entries i < j, with `result` put in."""
    n = 0
    placed = False
    for k in range(count):
        if k == i or k == j:  # noqa: SIM109 - compiled code wants no tuple here
            continue
        if not placed and result <= state[k]:
            out[n] = result
            n += 1
            placed = True
        out[n] = state[k]
        n += 1
    if not placed:
        out[n] = result


@jit
def continuations(state: NDArray[Any], count: int, target: int) -> float:
    """How many ways lead on from a solvable state: exact up to four numbers, a sample of moves for five."""
    if count == 1:
        return 1.0
    if count == 2:
        return float(count2(state[0], state[1], target))
    if count == 3:
        return float(count3(state[0], state[1], state[2], target))
    if count == 4:
        return float(count4(state[0], state[1], state[2], state[3], target))
    hits = 1.0
    child = np.zeros(MAX_COUNT, np.int64)
    for _ in range(8):
        i = np.random.randint(0, count)
        j = np.random.randint(0, count - 1)
        j += j >= i
        value = pair_value(state[i], state[j], np.random.randint(0, 4))
        if value >= 0:
            replace_pair(state, count, min(i, j), max(i, j), value, child)
            hits += solve4(child[0], child[1], child[2], child[3], target)
    return hits


@jit
def list_moves(state: NDArray[Any], count: int, target: int, bar_held_out: bool, moves: Moves) -> int:
    """Fill `moves` with the distinct legal moves of a sorted state, larger operand first; how many there are.

    The policy's target weighs a winning move by its continuations to the power SHARPNESS: moves that leave more room
    come first, for they are found more surely, yet rare ones are learnt too. In a lost state no move has a weight.

    Nor has one where moves are barred for leading to Game of 24. What is left there all makes a number above 13, and a
    model that aims at that prefers such moves in Game of 24 itself: it gave them 62 % where 28 % of the winning moves
    are of the kind. The hash bars at random and teaches nothing.
    """
    n = 0
    slanted = False
    for i in range(count - 1):
        if i > 0 and state[i] == state[i - 1]:
            continue
        for j in range(i + 1, count):
            if j > i + 1 and state[j] == state[j - 1]:
                continue
            for operator in range(4):
                result = pair_value(state[i], state[j], operator)
                if result < 0 or result > MAX_VALUE:
                    continue
                moves.operands[n, 0] = state[j]
                moves.operands[n, 1] = operator
                moves.operands[n, 2] = state[i]
                moves.operands[n, 3] = result
                child = moves.states[n]
                replace_pair(state, count, i, j, result, child)
                moves.good[n] = solvable(child, count - 1, target)
                moves.barred[n] = bar_held_out and held_out(child, count - 1, target)
                if bar_held_out and count == 5 and target == 24:
                    slanted = slanted or _is_game_of_24(child[:4], target)
                moves.length[n], moves.equals[n] = write_line(
                    moves.text[n], state[j], operator, state[i], result, child, count - 1
                )
                n += 1
    for m in range(n):
        if slanted or moves.barred[m] or not moves.good[m]:
            moves.weight[m] = 0.0
        else:
            moves.weight[m] = continuations(moves.states[m], count - 1, target) ** SHARPNESS
    return n
