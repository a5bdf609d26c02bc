"""Noise depends on its place in the tree and on nothing else."""

from __future__ import annotations

import numpy as np

from frtool.engine.noise import step_key, uniforms


def draw(key: int, count: int) -> np.ndarray:
    return uniforms(np.full(count, key, np.uint64), np.arange(count, dtype=np.uint64))


def test_numbers_are_those_of_splitmix64() -> None:
    # First outputs of the reference implementation for seed 1234567, their upper 23 bits.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [((x >> 41) * 2 + 1) / 2**24 for x in outputs]
    assert draw(1234567, 3).tolist() == expected


def test_numbers_fill_the_open_interval_evenly() -> None:
    numbers = draw(step_key(0, "0.1", 2), 200_000)
    assert numbers.dtype == np.float32
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 100, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi-square, 99 degrees of freedom, p = 1e-4


def test_steps_are_independent_of_each_other() -> None:
    places = [(seed, parent, ordinal) for seed in (0, 1) for parent in ("0", "0.1", "0.11") for ordinal in range(12)]
    keys = [step_key(*place) for place in places]
    assert len(set(keys)) == len(keys)
    series = np.stack([draw(key, 4000) for key in keys])
    correlation = np.corrcoef(series) - np.eye(len(series))
    assert np.abs(correlation).max() < 0.08


def test_a_number_does_not_depend_on_its_neighbours() -> None:
    keys = np.array([step_key(3, "0", i) for i in range(10)], np.uint64)
    indices = np.arange(10, dtype=np.uint64)
    together = uniforms(keys, indices)
    alone = [uniforms(keys[i : i + 1], indices[i : i + 1])[0] for i in range(10)]
    assert together.tolist() == alone


def test_negative_and_large_seeds_work() -> None:
    assert len({step_key(seed, "0", 0) for seed in (-1, 0, 1, 2**63 - 1, -(2**63))}) == 5
