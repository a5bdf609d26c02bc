"""Legal moves of a puzzle, and whether it has a solution: by trying."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from frtool.tasks.steps import combine


def successors(state: Sequence[int]) -> list[tuple[int, ...]]:
    """The sorted numbers after each distinct legal step: two of them combined, exact and not negative.

    One entry for each distinct step (operands and operator), in a fixed order; steps of equal outcome stay apart.
    """
    found = []
    for i, j in sorted(set(combinations(sorted(state), 2))):
        rest = list(state)
        rest.remove(i)
        rest.remove(j)
        for operator in "+-*/":
            value = combine(j, operator, i)
            if value is not None:
                found.append(tuple(sorted((*rest, value))))
    return found


def is_solvable(numbers: Sequence[int], target: int) -> bool:
    """Whether legal steps lead from `numbers` to `target` alone."""
    seen: set[tuple[int, ...]] = set()
    stack = [tuple(sorted(numbers))]
    while stack:
        state = stack.pop()
        if len(state) == 1:
            if state[0] == target:
                return True
            continue
        for following in successors(state):
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return False
