"""Sampling noise that depends on nothing but its place in the tree.

A step has a 64-bit key, a hash of the seed, its parent's id and its ordinal. Token i of the step takes output i of the
SplitMix64 generator seeded with that key (Steele, Lea, Flood 2014: "Fast splittable pseudorandom number generators").
So neither the batch, nor the order in which steps run, nor a resumed run changes a sample.

In the place of such a number may stand LIKELIEST, or `forced(token)` for a token that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .rows import Row

LIKELIEST = -1.0
FORCED = -2.0
"""`FORCED - token` stands for that token; float32 holds each below 2^24 exactly."""

_LEAST, _MOST = 2.0**-24, 1 - 2.0**-24
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def step_key(seed: int, parent: str, ordinal: int) -> int:
    """The 64-bit noise key of child `ordinal` of node `parent`."""
    return int.from_bytes(blake2b(f"{seed}/{parent}/{ordinal}".encode(), digest_size=8).digest(), "little")


def uniforms(keys: npt.NDArray[np.uint64], indices: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """float32 [n] in the open interval (0, 1), multiples of 2^-24: one for each uint64 pair (step key, token index)."""
    z = keys + (indices + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z ^= z >> np.uint64(31)
    # 23 bits and a half: float32 holds each value exactly, and none rounds to 1.
    places: npt.NDArray[np.float32] = ((z >> np.uint64(41)) * 2 + 1).astype(np.float32)
    return places * np.float32(2.0**-24)


def forced(token: int) -> float:
    return FORCED - token


def row_noise(rows: Sequence[Row], indices: Sequence[int]) -> npt.NDArray[np.float32]:
    """float32 [n]: what decides token `indices[i]` of each row. The numbers that a row brings come before its noise."""
    noise = uniforms(np.array([row.key for row in rows], np.uint64), np.array(indices, np.uint64))
    for place, row in enumerate(rows):
        if row.greedy:
            noise[place] = LIKELIEST
        elif row.course and indices[place] < len(row.course):
            noise[place] = row.course[indices[place]]
    return noise


def course(prefix: Sequence[int], uniform: float | None) -> tuple[float, ...]:
    """What decides the first tokens of a step that begins with `prefix` and goes on with the token of `uniform`."""
    known = tuple(map(forced, prefix))
    return known if uniform is None else (*known, min(max(uniform, _LEAST), _MOST))
