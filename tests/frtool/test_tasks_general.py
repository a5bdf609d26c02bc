from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.tasks.general import ExpressionTask, GeneralTask
from frtool.tasks.puzzle import Puzzle


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is \\boxed{42}.", "42"),
        ("First \\boxed{1}, no: \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("Think.\nThe answer is 42.", "42"),
        ("the final answer is: **42**\nBye", "42"),
        ("Because.\nAnswer: Paris\n", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("# Final answer\n\nParis", "Paris"),
        ("  Paris\n", "Paris"),
        ("\\boxed{never closed", "\\boxed{never closed"),
        ("  \n", None),
    ],
)
def test_the_answer_is_found_where_models_put_it(text: str, answer: str | None) -> None:
    assert GeneralTask().answer(text) == answer


def test_keys_ignore_whitespace_only() -> None:
    task = GeneralTask()
    assert task.key(" a  b\n") == task.key("a b")
    assert task.key("a b") != task.key("ab")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is $(10-6) \\times 5 + 4 = 24$.", "(10-6)*5+4"),
        ("Try 4+5+6+10 = 25, no.\n(10 - 6) * 5 + 4 = 24", "(10-6)*5+4"),
        ("\\boxed{(10-6)\u00d75+4}\nThat was fun: 4 steps.", "(10-6)*5+4"),
        ("4+5+6+10 = 25", "4+5+6+10"),
        ("(10-6)*5 = 20", None),
        ("I cannot do it.", None),
        ("", None),
    ],
)
def test_an_expression_is_found_in_free_text(text: str, answer: str | None) -> None:
    assert ExpressionTask(Puzzle((4, 5, 6, 10), 24)).answer(text) == answer


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    GeneralTask().answer(text)
    ExpressionTask(Puzzle((4, 5, 6, 10), 24)).answer(text)


@pytest.mark.parametrize("piece", ["(", "1+", "answer ", "\\boxed{", "* ", "1 ", "\n", "the answer is", "answer:\t"])
@pytest.mark.timeout(30)  # anything worse than linear takes far longer
def test_long_hostile_text_is_judged(piece: str) -> None:
    ExpressionTask(Puzzle((4, 5, 6, 10), 24)).answer(piece * 50_000)
