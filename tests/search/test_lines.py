"""Sampling without replacement among the lines after one node: exact, exhaustive, and never the same twice at once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.search.lines import Lines
from frtool.search.protocols import Step

END = -1
Odds = dict[tuple[int, ...], dict[int, float]]
"""After each prefix, the next tokens in the order of the sampler; END, or a prefix without odds, completes a line."""

FEW: Odds = {
    (): {4: 0.5, 7: 0.3, END: 0.2},
    (4,): {1: 0.6, 2: 0.4},
    (7,): {1: 0.1, END: 0.9},
    (4, 2): {END: 0.25, 3: 0.75},
}


def lines_of(odds: Odds, prefix: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    """Every whole line with its probability."""
    if prefix[-1:] == (END,) or prefix not in odds:
        return {prefix: 1.0}
    return {
        line: share * rest
        for token, share in odds[prefix].items()
        for line, rest in lines_of(odds, (*prefix, token)).items()
    }


def write(odds: Odds, prefix: tuple[int, ...], uniform: float | None, rng: random.Random) -> Step:
    """What a generator makes of a request."""
    line: tuple[int, ...] = ()
    intervals: list[float] = []
    while line in odds and line[-1:] != (END,):
        place = len(line)
        if place < len(prefix):
            line, edges = (*line, prefix[place]), (0.0, 0.0)
        else:
            number = uniform if place == len(prefix) and uniform is not None else rng.random()
            low = 0.0
            for token, share in odds[line].items():  # noqa: B007 (the last one where rounding lacks a bit of 1)
                edges = (round(low, 7), round(low + share, 7))
                if number < low + share:
                    break
                low += share
            line = (*line, token)
        intervals += edges
    ids = line[:-1] if line[-1] == END else line
    return Step("0", 0, "", len(line), 0.0, "step", ids=ids, intervals=tuple(intervals))


def whole(step: Step) -> tuple[int, ...]:
    return step.ids if step.tokens == len(step.ids) else (*step.ids, END)


def sample(odds: Odds, lines: Lines, rng: random.Random, ordinal: int = 0) -> Step:
    return replace(write(odds, *lines.draw(ordinal), rng), ordinal=ordinal)


def chi_square(found: Counter[tuple[int, ...]], wanted: dict[tuple[int, ...], float]) -> float:
    count, total = sum(found.values()), sum(wanted.values())
    assert set(found) <= set(wanted)
    return sum((found[line] - count * p / total) ** 2 / (count * p / total) for line, p in wanted.items())


def test_the_first_line_follows_the_model_and_the_next_ones_what_is_left_of_it() -> None:
    known = lines_of(FEW)
    firsts: Counter[tuple[int, ...]] = Counter()
    seconds: dict[tuple[int, ...], Counter[tuple[int, ...]]] = {line: Counter() for line in known}
    thirds: Counter[tuple[int, ...]] = Counter()
    favourites = ((7, END), (4, 1))
    rng = random.Random(1)
    for seed in range(12_000):
        lines = Lines(seed, "0.3")
        drawn = []
        for _ in range(3):
            step = sample(FEW, lines, rng)
            assert lines.add(step)
            drawn.append(whole(step))
        firsts[drawn[0]] += 1
        seconds[drawn[0]][drawn[1]] += 1
        if set(drawn[:2]) == set(favourites):
            thirds[drawn[2]] += 1
    assert chi_square(firsts, known) < 23.5  # 5 degrees of freedom, p = 3e-4
    for first, found in seconds.items():
        assert chi_square(found, {line: p for line, p in known.items() if line != first}) < 21.2  # 4 degrees
    assert sum(thirds.values()) > 1000
    assert chi_square(thirds, {line: p for line, p in known.items() if line not in favourites}) < 18.8  # 3 degrees


@st.composite
def tries(draw: st.DrawFn) -> Odds:
    odds: Odds = {}

    def grow(prefix: tuple[int, ...]) -> None:
        tokens = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
        if prefix and draw(st.booleans()):
            tokens.append(END)
        weights = [draw(st.floats(0.02, 1)) for _ in tokens]
        odds[prefix] = {token: weight / sum(weights) for token, weight in zip(tokens, weights, strict=True)}
        for token in tokens:
            if token != END and len(prefix) < 2 and draw(st.booleans()):
                grow((*prefix, token))

    grow(())
    return odds


@given(odds=tries(), seed=st.integers(0, 1000), together=st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_every_line_comes_once_and_then_nothing_is_left(odds: Odds, seed: int, together: int) -> None:
    known, rng, lines = lines_of(odds), random.Random(seed), Lines(seed, "0")
    seen: set[tuple[int, ...]] = set()
    for _ in range(40 * len(known)):
        if lines.rest < 1e-5:
            break
        steps: list[Step] = []
        while len(steps) < together and lines.free > 1e-5:
            steps.append(sample(odds, lines, rng, len(steps)))
        assert len({whole(step) for step in steps}) == len(steps), "lines under way together differ"
        for step in steps:
            assert whole(step) not in seen
            assert lines.add(step)
            seen.add(whole(step))
            assert lines.rest == pytest.approx(1 - sum(known[line] for line in seen), abs=3e-5)
        assert lines.free == lines.rest
    assert seen == set(known)
    assert lines.seen == len(known)


def test_a_seed_and_a_node_decide_the_numbers() -> None:
    def numbers(seed: int, name: str) -> list[float]:
        lines = Lines(seed, name)
        for place in range(6):
            lines.add(Step("0", place, "", 1, 0.0, "end", intervals=(place / 9, (place + 0.5) / 9)))
        return [lines.draw(6 + place)[1] for place in range(6)]

    assert numbers(1, "0.1") == numbers(1, "0.1")
    assert not set(numbers(1, "0.1")) & (set(numbers(2, "0.1")) | set(numbers(1, "0.2")))


def test_steps_without_intervals_teach_nothing() -> None:
    lines = Lines(0, "0")
    assert not lines.add(Step("0", 0, "a", 2, 0.0, "step", ids=(1, 2)))
    assert (lines.told, lines.seen, lines.rest) == (1, 0, 1.0)


def test_a_greedy_step_has_no_place_until_a_sample_gives_it_one() -> None:
    lines = Lines(0, "0")
    greedy = Step("0", 0, "", 2, 0.0, "step", ids=(4, 1), intervals=(0.0,) * 4)
    assert not lines.add(greedy)
    assert lines.rest == 1.0
    assert lines.add(write(FEW, (), 0.1, random.Random(2)))
    assert lines.rest < 1.0


def test_a_token_whose_edges_move_is_not_taken_for_two() -> None:
    """As on a device whose passes differ in their last bits."""
    lines = Lines(0, "0")
    lines.add(Step("0", 0, "", 1, 0.0, "step", ids=(3,), intervals=(0.2, 0.5)))
    assert lines.rest == pytest.approx(0.7)
    assert not lines.add(Step("0", 1, "", 1, 0.0, "step", ids=(3,), intervals=(0.21, 0.52)))
    assert lines.rest == pytest.approx(0.68)
    lines.add(Step("0", 2, "", 1, 0.0, "step", ids=(4,), intervals=(0.51, 0.9)))
    assert lines.rest == pytest.approx(0.3)
    for ordinal in range(3, 100):
        prefix, uniform = lines.draw(ordinal)
        lines.add(Step("0", ordinal, "", 0, 0.0, "length"))
        assert prefix == ()
        assert uniform < 0.2 or uniform > 0.9


def test_two_end_tokens_are_two_lines() -> None:
    lines = Lines(0, "0")
    for place, edges in enumerate([(0.0, 0.25), (0.5, 0.75)]):
        assert lines.add(Step("0", place, "", 1, 0.0, "end", intervals=edges))
    assert lines.rest == pytest.approx(0.5)
