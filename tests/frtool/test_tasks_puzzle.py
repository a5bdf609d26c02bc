from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.tasks.puzzle import MAX_PROMPT_CHARS, Puzzle, parse_puzzle


@pytest.mark.parametrize(
    ("prompt", "numbers", "target"),
    [
        ("Make 24 from 4, 5, 6, 10", (4, 5, 6, 10), 24),
        ("make 24 from 4 5 6 and 10.", (4, 5, 6, 10), 24),
        ("Use 3 7 25 50 to reach 765", (3, 7, 25, 50), 765),
        ("Use the numbers 1, 2, 3, and 4 to get 10", (1, 2, 3, 4), 10),
        ("4 5 6 10 = 24", (4, 5, 6, 10), 24),
        ("4,5,6,10=24", (4, 5, 6, 10), 24),
        ("[4,5,6,10] -> 24", (4, 5, 6, 10), 24),
        ("24 game: 4 5 6 10", (4, 5, 6, 10), 24),
        ("24-game: 4 5 6 10", (4, 5, 6, 10), 24),
        ("Game of 24: 4 5 6 10", (4, 5, 6, 10), 24),
        ("24: 4 5 6 10", (4, 5, 6, 10), 24),
        ("Numbers: 3, 7, 25, 50. Target: 765.", (3, 7, 25, 50), 765),
        ("The target is: 24. Numbers 4 5 6 10", (4, 5, 6, 10), 24),
        ("make 24 using each of the 4 numbers 4 5 6 10 exactly 1 time", (4, 5, 6, 10), 24),
        ("Can you make exactly 24 out of 4 5 6 10, please?", (4, 5, 6, 10), 24),
        ("Use 4 5 6 to make 7. Each of 4 5 6 once.", (4, 5, 6), 7),
        ("Countdown: 75 50 2 3 8 7, target 812", (75, 50, 2, 3, 8, 7), 812),
    ],
)
def test_natural_phrasings_are_read(prompt: str, numbers: tuple[int, ...], target: int) -> None:
    assert parse_puzzle(prompt) == Puzzle(numbers, target)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "What is the capital of France?",
        "What is the sum of 3, 4 and 5?",
        "Alice buys 3, 4 and 5 apples to make 12 pies",
        "4 5 6 10 24",
        "Make 24 from 4, -5, 6, 10",
        "Make 24 from 4.5, 5, 6, 10",
        "Make 24.5 from 4 5 6",
        "Make -24 from 4 5 6",
        "Make 24 from 4*5 6 10",
        "Make 24 or reach 25 from 4 5 6 10",
        "Make 24 from 4 5 6 or make 24 from 7 8 9",
        "Make 24 from 1,000 5 6",
        "Make 24 from 10000000 5 6",
        "Make \u00b24 from 4 5 6",
        "\u0663 4 5 = 6",
    ],
)
def test_anything_else_is_not_a_puzzle(prompt: str) -> None:
    assert parse_puzzle(prompt) is None


@pytest.mark.parametrize("piece", ["1 ", "1,", "- ", "\n-", "9", " ", "make ", "a", ".", "1.", "= 1 "])
@pytest.mark.timeout(30)  # anything worse than linear takes far longer
def test_long_hostile_prompts_are_judged(piece: str) -> None:
    parse_puzzle((piece * MAX_PROMPT_CHARS)[:MAX_PROMPT_CHARS])
    assert parse_puzzle(piece * MAX_PROMPT_CHARS + "4 5 6 = 7") is None


@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    parse_puzzle(text)


@given(st.lists(st.integers(0, 999), min_size=2, max_size=16), st.integers(0, 999_999))
def test_written_puzzles_come_back(numbers: list[int], target: int) -> None:
    assert parse_puzzle(f"Use {', '.join(map(str, numbers))} to reach {target}") == Puzzle(tuple(numbers), target)


@pytest.mark.parametrize("name", ["countdown", "puzzle24"])
def test_reasoning_gym_questions_are_read(name: str) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for item in reasoning_gym.create_dataset(name, seed=11, size=40):
        expected = Puzzle(tuple(item["metadata"]["numbers"]), item["metadata"].get("target", 24))
        assert parse_puzzle(item["question"]) == expected


@pytest.mark.parametrize(("numbers", "target"), [((4,), 24), ((1,) * 17, 24), ((-1, 4), 3), ((1, 4), 1_000_000)])
def test_a_puzzle_out_of_bounds_is_refused(numbers: tuple[int, ...], target: int) -> None:
    with pytest.raises(ValueError, match=r"numbers|outside"):
        Puzzle(numbers, target)
