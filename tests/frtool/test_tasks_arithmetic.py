from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.tasks.arithmetic import ArithmeticTask, Puzzle, embedded_limit
from frtool.tasks.steps import combine, parse_move
from frtool.verify.arithmetic import ArithmeticVerifier, evaluate

TASK = ArithmeticTask(Puzzle((10, 4, 6, 5), 24))


def random_path(numbers: list[int], rng: random.Random) -> tuple[str, int]:
    """Random legal steps to the end: their text and the value reached."""
    state, lines = sorted(numbers), []
    while len(state) > 1:
        i, j = rng.sample(range(len(state)), 2)
        left, right = max(state[i], state[j]), min(state[i], state[j])
        operator = rng.choice([op for op in "+-*/" if combine(left, op, right) is not None])
        result = combine(left, operator, right)
        assert result is not None
        if result >= 10**12:
            operator, result = "-", left - right
        state = sorted([value for k, value in enumerate(state) if k not in (i, j)] + [result])
        lines.append(f"{left}{operator}{right}={result} ({' '.join(map(str, state))})")
    return "\n".join(lines), state[0]


def test_prompt_text_is_canonical() -> None:
    assert TASK.prompt_text == "4 5 6 10=24\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("10-6=4 (4 4 5)\n5*4=20 (4 20)\n20+4=24 (24)", "5*4+10-6"),
        ("10-6=4 (4 4 5)\n5*4=20 (4 20)\n20+4=24 (24)\n", "5*4+10-6"),
        ("5+4=9 (6 9 10)\n10-6=4 (4 9)\n9-4=5 (5)", "5+4-(10-6)"),
        ("10-4=6 (5 6 6)\n6*5=30 (6 30)\n30-6=24 (24)", "6*5-(10-4)"),
    ],
)
def test_a_finished_derivation_becomes_one_expression(text: str, answer: str) -> None:
    assert TASK.answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "10-6=4 (4 4 5)\n",
        "10-6=4 (4 4 5)\n5*4=20 (4 20)\n",
        "10-6=5 (4 5 5)\n5*5=25 (4 25)\n25-4=21 (21)",
        "10-6=4 (4 5)\n5*4=20 (20)",
        "10-7=3 (3 4 5)\n5*4=20 (3 20)\n20+3=23 (23)",
        "4-10=0 (0 5 6)\n6+5=11 (0 11)\n11+0=11 (11)",
        "10-6=4 (4 4 5)\n\n5*4=20 (4 20)\n20+4=24 (24)",
        "10-6=4 (4 4 5)\n5*4=20 (4 20)\n20+4=24 (24)\n24+0=24 (24)",
        "the answer is 24",
        "1" * 100_000,
    ],
)
def test_anything_but_a_finished_legal_derivation_has_no_answer(text: str) -> None:
    assert TASK.answer(text) is None


@given(st.lists(st.integers(0, 100), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_expressions_have_the_value_and_the_numbers_of_their_path(numbers: list[int], rng: random.Random) -> None:
    text, value = random_path(numbers, rng)
    answer = ArithmeticTask(Puzzle(tuple(numbers), 1)).answer(text)
    assert answer is not None
    result, used = evaluate(answer)
    assert result == value
    assert sorted(used) == sorted(numbers)
    if value < 10**6:
        assert ArithmeticVerifier(Puzzle(tuple(numbers), value)).verify(answer)


@pytest.mark.parametrize(
    ("numbers", "text", "answer"),
    [
        ((2, 3, 4), "3+2=5 (4 5)\n5*4=20 (20)", "(3+2)*4"),
        ((2, 3, 4), "3*2=6 (4 6)\n6+4=10 (10)", "3*2+4"),
        ((2, 3, 12), "3*2=6 (6 12)\n12/6=2 (2)", "12/(3*2)"),
        ((2, 4, 12), "4/2=2 (2 12)\n12*2=24 (24)", "12*4/2"),
        ((2, 4, 12), "4-2=2 (2 12)\n12+2=14 (14)", "12+4-2"),
        ((2, 4, 12), "4-2=2 (2 12)\n12-2=10 (10)", "12-(4-2)"),
        ((1, 2, 2, 4), "2-1=1 (1 2 4)\n4/2=2 (1 2)\n2+1=3 (3)", "4/2+2-1"),
    ],
)
def test_expressions_have_the_fewest_parentheses(numbers: tuple[int, ...], text: str, answer: str) -> None:
    assert ArithmeticTask(Puzzle(numbers, 1)).answer(text) == answer


def test_equal_steps_have_equal_keys_and_different_ones_do_not() -> None:
    assert TASK.key("6+4=10 (5 10 10)\n") == TASK.key("4+6=10 (10 5 10)") == "6+4=10 (5 10 10)"
    assert TASK.key("10-6=4 (4 4 5)\n") != TASK.key("10-6=4 (4 5 5)\n")
    assert TASK.key("  not a\tstep \n") == "not a step"


def test_state_is_what_remains() -> None:
    assert TASK.state("") == "4 5 6 10"
    assert TASK.state("10-6=4 (4 4 5)\n") == "4 4 5"
    assert TASK.state("10-6=4 (4 4 5)\n5*4=20 (4 20)\n") == TASK.state("5*4=20 (6 10 20)\n10-6=4 (4 20)\n") == "4 20"
    assert TASK.state("10-6=3 (3 4 5)\n") is None


@given(st.text(alphabet="0123456789+-*/=() \n", max_size=80))
def test_hostile_steps_never_raise(text: str) -> None:
    TASK.answer(text)
    TASK.key(text)
    TASK.state(text)
    parse_move(text)


def test_the_limits_of_the_embedded_model_are_named() -> None:
    assert embedded_limit(Puzzle((4, 5, 6, 10), 24)) is None
    assert "3 to 6 numbers" in str(embedded_limit(Puzzle((4, 5), 9)))
    assert "has 101" in str(embedded_limit(Puzzle((4, 5, 101), 9)))
    assert "has 0" in str(embedded_limit(Puzzle((4, 5, 0), 9)))
    assert "has 1000" in str(embedded_limit(Puzzle((4, 5, 6), 1000)))
