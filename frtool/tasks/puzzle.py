"""Arithmetic puzzles (reach a target from given numbers) and how people write them down."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_PROMPT_CHARS = 4_000
MAX_NUMBERS = 16
MAX_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Combine all `numbers`, each exactly once, with + - * / into `target`.

    Raises ValueError for fewer than 2 or more than 16 numbers, or values outside 0…999,999.
    """

    numbers: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        if not 2 <= len(self.numbers) <= MAX_NUMBERS:
            raise ValueError(f"a puzzle has 2 to {MAX_NUMBERS} numbers, not {len(self.numbers)}")
        for value in (*self.numbers, self.target):
            if not 0 <= value < 10**MAX_DIGITS:
                raise ValueError(f"{value} is outside 0…{10**MAX_DIGITS - 1}")


# Every pattern below is a plain alternation without nested repeats, so matching is linear in the text.
_TOKEN = re.compile(r"\d+|[a-z]+|->|=>|[^\sa-z\d]")
_DECIMAL = re.compile(r"\d\.\d|(?<![\w.])\.\d")
_NEGATIVE = re.compile(r"(?<![\w)\]])-\d")
_WHOLE = re.compile(rf"0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}}")
_LISTED = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+[a-z]", re.IGNORECASE)
"""A line of a numbered or bulleted list of instructions."""

_SEPARATORS = frozenset({",", ";", "and", "&"})
_TARGET_WORDS = (
    "make makes making reach reaches reaching get gets getting form forms obtain create creates calculate "
    "compute produce produces hit equals equal equaling target goal result value total is to give gives "
    "yield yields solve = -> => → build construct"
)
_TARGET_BEFORE = frozenset(_TARGET_WORDS.split())
_AFTER_LEADING_TARGET = frozenset({":", "=", "from", "using", "with"})
_FILLER = frozenset({"the", "a", "an", "exactly", "number", "should", "be", ":", "for", "of"})
"""Words that may stand between a cue and its target: "the target is: 24"."""
_PUZZLE_WORDS = (
    "a all allowed an and answer are arithmetic as at basic be by can card cards combine combined "
    "combining countdown create digit digits divide division do each end equation evaluate evaluates "
    "every exactly example expression find five following for four from game given giving has help how i "
    "in instructions integer integers into it its just let many may me most multiplication multiply must "
    "need not number numbers of on once one only operation operations operator operators or order out "
    "parentheses play please possible provide puzzle reach results see show should sign six so solution "
    "steps subtract subtraction add addition sum take that the them then these they this those three time "
    "times try up use used uses using want way we what which will with would write you your"
)
_VOCABULARY = _TARGET_BEFORE | frozenset(_PUZZLE_WORDS.split())
_FOREIGN_SHARE = 0.25


def parse_puzzle(prompt: str) -> Puzzle | None:
    """The puzzle that a prompt asks for, or None.

    Reads "Make 24 from 4, 5, 6, 10", "Use 3 7 25 50 to reach 765", "4 5 6 10 = 24", "24 game: 4 5 6 10", and the
    question texts of reasoning-gym's countdown and puzzle24. The prompt must hold one list of two or more whole
    numbers and one target that is marked as such, in words that puzzles are written in: a text problem that
    happens to name numbers is not a puzzle. Negative and decimal numbers give None.
    """
    if len(prompt) > MAX_PROMPT_CHARS:
        return None
    lines = [line for line in prompt.lower().splitlines() if not _LISTED.match(line)]
    text = "\n".join(lines).replace("\u2212", "-")
    if _DECIMAL.search(text) or _NEGATIVE.search(text):
        return None
    tokens = _TOKEN.findall(text)
    if any(t[0].isdigit() and not _WHOLE.fullmatch(t) for t in tokens):
        return None
    words = [t for t in tokens if t.isalpha()]
    if sum(w not in _VOCABULARY for w in words) > _FOREIGN_SHARE * len(words):
        return None
    if any(
        a.isdigit() and b in "+-*/^\u00d7\u00f7" and c.isdigit()
        for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)
    ):
        return None

    runs = _number_runs(tokens)
    lists = {tuple(values) for _, _, values in runs if len(values) >= 2}
    targets = {values[0] for start, stop, values in runs if len(values) == 1 and _is_target(tokens, start, stop)}
    if len({tuple(sorted(numbers)) for numbers in lists}) != 1 or len(targets) != 1:
        return None
    try:
        return Puzzle(min(lists), targets.pop())
    except ValueError:
        return None


def _number_runs(tokens: list[str]) -> list[tuple[int, int, list[int]]]:
    """Maximal runs of numbers with nothing but separators between: (first token, one past the last, values)."""
    runs: list[tuple[int, int, list[int]]] = []
    i = 0
    while i < len(tokens):
        if not tokens[i].isdigit():
            i += 1
            continue
        start, stop, values = i, i + 1, [int(tokens[i])]
        while True:
            j = stop
            while j < len(tokens) and tokens[j] in _SEPARATORS:
                j += 1
            if j >= len(tokens) or not tokens[j].isdigit():
                break
            values.append(int(tokens[j]))
            stop = j + 1
        runs.append((start, stop, values))
        i = stop
    return runs


def _is_target(tokens: list[str], start: int, stop: int) -> bool:
    if tokens[stop : stop + 1] == ["game"] or tokens[stop : stop + 2] == ["-", "game"]:
        return True
    if tokens[max(start - 2, 0) : start] == ["game", "of"]:
        return True
    if start == 0 and tokens[stop : stop + 1] and tokens[stop] in _AFTER_LEADING_TARGET:
        return True
    i = start - 1
    while i >= 0 and tokens[i] in _FILLER and tokens[i] not in _TARGET_BEFORE:
        i -= 1
    return i >= 0 and tokens[i] in _TARGET_BEFORE
