"""Equality by math-verify."""

from __future__ import annotations

import sys
import threading

import pytest

from frtool.errors import UsageError

pytest.importorskip("math_verify")

from frtool.verify.math import MathVerifier


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("1/2", "0.5", True),
        ("\\frac{1}{2}", "1/2", True),
        ("\\boxed{42}", "42", True),
        ("42", "41", False),
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("42", "", False),
        ("42", "no idea", False),
        ("42", "\\frac{", False),
        ("42", "9" * 5000, False),
        ("42", "\x1b[2J\ud800", False),
    ],
)
def test_equal_values_are_right(expected: str, answer: str, right: bool) -> None:
    assert MathVerifier(expected).verify(answer) is right


def test_it_works_outside_the_main_thread() -> None:
    verifier, verdicts = MathVerifier("24"), []
    thread = threading.Thread(target=lambda: verdicts.extend([verifier.verify("24"), verifier.verify("25")]))
    thread.start()
    thread.join()
    assert verdicts == [True, False]


def test_an_expected_answer_that_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--expected"):
        MathVerifier(" ")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UsageError, match="math-verify") as caught:
        MathVerifier("1")
    assert "pip install" in (caught.value.hint or "")
