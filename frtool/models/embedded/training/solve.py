"""Exact solvability of small states, by working backward from the target.

To reach T from the numbers S, the last operation joins what one part of S makes with what the rest makes. With the
value x of one part known, the rest has to make one of at most six values v: T-x, T+x, x-T, T*x, T/x, x/T. So five
numbers cost some thousands of comparisons where playing every move out costs 46,000. Values are whole, not negative.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from .compiled import jit


@jit
def need(x: int, target: int, way: int) -> int:
    """The value that, combined with x > 0 or 0, gives `target` in one of six ways; -1 where that way has none."""
    if way == 0:
        return target - x if target >= x else -1
    if way == 1:
        return target + x
    if way == 2:
        return x - target if x >= target else -1
    if x == 0:
        return -1
    if way == 3:
        return target // x if target % x == 0 else -1
    if way == 4:
        return target * x
    return x // target if target > 0 and x % target == 0 else -1


@jit
def pair_value(a: int, b: int, way: int) -> int:
    """What two numbers make in one of four ways; -1 where that way has none."""
    if a < b:
        a, b = b, a
    if way == 0:
        return a + b
    if way == 1:
        return a - b
    if way == 2:
        return a * b
    return a // b if b > 0 and a % b == 0 else -1


@jit
def solve2(a: int, b: int, target: int) -> bool:
    if a + b == target or a * b == target or a - b == target or b - a == target:
        return True
    return (b > 0 and a == target * b) or (a > 0 and b == target * a)


@jit
def _one_two(x: int, a: int, b: int, target: int) -> bool:
    if x == 0 and target == 0:
        return True
    for way in range(6):
        v = need(x, target, way)
        if v >= 0 and solve2(a, b, v):
            return True
    return False


@jit
def solve3(a: int, b: int, c: int, target: int) -> bool:
    return _one_two(a, b, c, target) or _one_two(b, a, c, target) or _one_two(c, a, b, target)


@jit
def _one_three(x: int, a: int, b: int, c: int, target: int) -> bool:
    if x == 0 and target == 0:
        return True
    most = max(a, 2) * max(b, 2) * max(c, 2)
    for way in range(6):
        v = need(x, target, way)
        if 0 <= v <= most and solve3(a, b, c, v):
            return True
    return False


@jit
def _two_two(a: int, b: int, c: int, d: int, target: int) -> bool:
    for way in range(4):
        x = pair_value(a, b, way)
        if x >= 0 and _one_two(x, c, d, target):
            return True
    return False


@jit
def solve4(a: int, b: int, c: int, d: int, target: int) -> bool:
    return (
        _one_three(a, b, c, d, target)
        or _one_three(b, a, c, d, target)
        or _one_three(c, a, b, d, target)
        or _one_three(d, a, b, c, target)
        or _two_two(a, b, c, d, target)
        or _two_two(a, c, b, d, target)
        or _two_two(a, d, b, c, target)
    )


@jit
def _one_four(x: int, a: int, b: int, c: int, d: int, target: int) -> bool:
    if x == 0 and target == 0:
        return True
    most = max(a, 2) * max(b, 2) * max(c, 2) * max(d, 2)
    for way in range(6):
        v = need(x, target, way)
        if 0 <= v <= most and solve4(a, b, c, d, v):
            return True
    return False


@jit
def _two_three(a: int, b: int, c: int, d: int, e: int, target: int) -> bool:
    for way in range(4):
        x = pair_value(a, b, way)
        if x >= 0 and _one_three(x, c, d, e, target):
            return True
    return False


@jit
def solve5(a: int, b: int, c: int, d: int, e: int, target: int) -> bool:
    return (
        _two_three(a, b, c, d, e, target)
        or _two_three(a, c, b, d, e, target)
        or _two_three(a, d, b, c, e, target)
        or _two_three(a, e, b, c, d, target)
        or _two_three(b, c, a, d, e, target)
        or _two_three(b, d, a, c, e, target)
        or _two_three(b, e, a, c, d, target)
        or _two_three(c, d, a, b, e, target)
        or _two_three(c, e, a, b, d, target)
        or _two_three(d, e, a, b, c, target)
        or _one_four(a, b, c, d, e, target)
        or _one_four(b, a, c, d, e, target)
        or _one_four(c, a, b, d, e, target)
        or _one_four(d, a, b, c, e, target)
        or _one_four(e, a, b, c, d, target)
    )


@jit
def count2(a: int, b: int, target: int) -> int:
    """In how many ways two numbers make the target."""
    ways = 0
    for way in range(4):
        ways += pair_value(a, b, way) == target
    return ways


@jit
def count3(a: int, b: int, c: int, target: int) -> int:
    """In how many orders of moves three numbers make the target."""
    ways = 0
    for way in range(4):
        x, y, z = pair_value(a, b, way), pair_value(a, c, way), pair_value(b, c, way)
        if x >= 0:
            ways += count2(x, c, target)
        if y >= 0:
            ways += count2(y, b, target)
        if z >= 0:
            ways += count2(z, a, target)
    return ways


@jit
def count4(a: int, b: int, c: int, d: int, target: int) -> int:
    """In how many orders of moves four numbers make the target."""
    ways = 0
    for way in range(4):
        for p, q, r, s in ((a, b, c, d), (a, c, b, d), (a, d, b, c), (b, c, a, d), (b, d, a, c), (c, d, a, b)):
            x = pair_value(p, q, way)
            if x >= 0:
                ways += count3(x, r, s, target)
    return ways


@jit
def solvable(state: NDArray[Any], count: int, target: int) -> bool:
    """Whether the first `count` (1 to 5) numbers of `state` make the target."""
    if count == 1:
        return bool(state[0] == target)
    if count == 2:
        return solve2(state[0], state[1], target)
    if count == 3:
        return solve3(state[0], state[1], state[2], target)
    if count == 4:
        return solve4(state[0], state[1], state[2], state[3], target)
    return solve5(state[0], state[1], state[2], state[3], state[4], target)
