from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.tasks.held_out import is_held_out, stable_hash
from frtool.tasks.puzzle import Puzzle
from frtool.verify.arithmetic import ArithmeticVerifier, ExpressionError, evaluate


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("(10-6)*5+4", True),
        (" ( 10 - 6 ) * 5 + 4 ", True),
        ("-(6-10)*5+4", True),
        ("(10-6)*5+4 = 24", False),
        ("(10-6)*5", False),
        ("24", False),
        ("10+4+5+6", False),
        ("(10-6)*5+4+0", False),
        ("(10-6)5+4", False),
        ("10--6", False),
        ("10**6", False),
        ("10/(4-4)", False),
        ("(10-6)*5+4;", False),
        ("__import__('os')", False),
        ("(10-6*5+4", False),
        ("", False),
    ],
)
def test_only_the_exact_expression_of_all_numbers_is_right(answer: str, right: bool) -> None:
    assert ArithmeticVerifier(Puzzle((4, 5, 6, 10), 24)).verify(answer) is right


def test_fractions_are_exact() -> None:
    assert ArithmeticVerifier(Puzzle((3, 3, 8, 8), 24)).verify("8/(3-8/3)")
    assert evaluate("1/3+1/3+1/3") == (Fraction(1), [1, 3, 1, 3, 1, 3])


@pytest.mark.parametrize(
    "text", ["(" * 300, "(" * 60 + "1" + ")" * 60, "1+" * 300, "9" * 50, "1" * 10_000, "\u0661+1", "1 2", "()", "+1"]
)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text)


@given(st.text(alphabet="0123456789+-*/() ", max_size=60))
def test_text_either_has_a_value_or_is_refused(text: str) -> None:
    try:
        value, _ = evaluate(text)
    except ExpressionError:
        return
    assert isinstance(value, Fraction)


def test_verdicts_agree_with_reasoning_gym() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    data = reasoning_gym.create_dataset("countdown", seed=3, size=12)
    rng = random.Random(0)
    for item in data:
        metadata = item["metadata"]
        verifier = ArithmeticVerifier(Puzzle(tuple(metadata["numbers"]), metadata["target"]))
        answer = item["answer"]
        swapped = answer.translate(str.maketrans("+-", "-+"))
        for candidate in (answer, swapped, answer + "+1", rng.choice(answer.split()), f"({answer})"):
            assert verifier.verify(candidate) == (data.score_answer(candidate, item) == 1.0), candidate


def test_the_whole_game_of_24_is_held_out() -> None:
    assert is_held_out((4, 5, 6, 10), 24)
    assert is_held_out((13, 13, 13, 13), 24)


def test_one_puzzle_in_sixteen_is_held_out() -> None:
    rng = random.Random(1)
    drawn = [(sorted(rng.choices(range(1, 101), k=rng.randint(3, 6))), rng.randint(1, 999)) for _ in range(20_000)]
    assert 0.055 < sum(is_held_out(numbers, target) for numbers, target in drawn) / len(drawn) < 0.07


def test_the_rule_never_changes() -> None:
    assert [stable_hash((3, 7, 25, 50), target) for target in (764, 765)] == [1562346637, 1650737461]
    assert [t for t in range(1, 100) if is_held_out((3, 7, 25, 50), t)] == [12, 22, 31, 38, 68, 96]
