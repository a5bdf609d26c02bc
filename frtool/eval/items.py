"""One problem of an evaluation and what judges its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from frtool.search.protocols import Verifier
from frtool.tasks.puzzle import Puzzle
from frtool.verify.arithmetic import is_expression


@dataclass(frozen=True, slots=True)
class Item:
    """A problem. `id` is unique in its task and the same in every run."""

    id: str
    prompt: str
    verifier: Verifier
    puzzle: Puzzle | None = None
    """What the prompt asks for, where it is an arithmetic puzzle."""
    expected: str | None = None
    """The right answer, where a file gave one."""


class ExactVerifier:
    """Right when the answer is the expected text, white space apart."""

    name = "exact"

    def __init__(self, expected: str) -> None:
        self._expected = " ".join(expected.split())

    def verify(self, answer: str) -> bool:
        return " ".join(answer.split()) == self._expected


_NUMBER = re.compile(r"[-+]?\d{1,40}(?:\.\d{1,40})?(?:/\d{1,40})?", re.ASCII)


def number(text: str) -> Fraction | None:
    """The exact value of `42`, `-3.5`, `1/3`, `$1,000` or `12%`; None for anything else."""
    plain = text.strip().strip("$").removesuffix("%").removesuffix(".").replace(",", "").strip()
    if not _NUMBER.fullmatch(plain) or ("/" in plain and "." in plain):
        return None
    try:
        return Fraction(plain)
    except ZeroDivisionError:
        return None


class NumericVerifier:
    """Right when the answer is a number of exactly the expected value."""

    name = "numeric"

    def __init__(self, expected: str) -> None:
        """Raises ValueError where the expected answer is no number."""
        value = number(expected)
        if value is None:
            raise ValueError(f"{expected[:80]!r} is no number")
        self._expected = value

    def verify(self, answer: str) -> bool:
        return number(answer) == self._expected


class GymVerifier:
    """Right when reasoning-gym's own scorer gives exactly 1: wrong answers get up to 0.05 of it."""

    name = "reasoning-gym"

    def __init__(self, dataset: Any, entry: dict[str, Any], *, expressions: bool = False) -> None:
        """`expressions`: its scorer evaluates text, so it sees only plain arithmetic."""
        self._dataset = dataset
        self._entry = entry
        self._expressions = expressions

    def verify(self, answer: str) -> bool:
        if self._expressions and not is_expression(answer):
            return False
        try:
            return bool(self._dataset.score_answer(answer=answer, entry=self._entry) == 1.0)
        except Exception:  # an answer that breaks the scorer is not right
            return False
