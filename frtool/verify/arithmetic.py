"""Exact check of an arithmetic expression: fractions, a parser of its own, no eval."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

from frtool.tasks.puzzle import Puzzle

MAX_CHARS = 400
MAX_DEPTH = 40
MAX_LITERAL_DIGITS = 9
_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))")


class ExpressionError(ValueError):
    """Text that is no expression of whole numbers, + - * / and parentheses, or that divides by zero."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the numbers written in it, in order.

    Whole-number literals, binary + - * / with the usual precedence, a leading minus, parentheses; nothing else (no
    powers, no implicit products). Raises ExpressionError otherwise, and past 400 characters, 40 levels of
    parentheses or 9 digits a literal.
    """
    return _Parser(_tokens(text)).parse()


def is_expression(text: str) -> bool:
    """Whether `evaluate` accepts the text."""
    try:
        evaluate(text)
    except ExpressionError:
        return False
    return True


class ArithmeticVerifier:
    """Right when the answer's exact value is the target and it uses each of the puzzle's numbers exactly once."""

    name = "arithmetic"

    def __init__(self, puzzle: Puzzle) -> None:
        self.puzzle = puzzle

    def verify(self, answer: str) -> bool:
        try:
            value, used = evaluate(answer)
        except ExpressionError:
            return False
        return value == self.puzzle.target and Counter(used) == Counter(self.puzzle.numbers)

    def uses_numbers(self, answer: str) -> bool:
        """Whether the answer is an expression of exactly the puzzle's numbers, whatever its value."""
        try:
            return Counter(evaluate(answer)[1]) == Counter(self.puzzle.numbers)
        except ExpressionError:
            return False


def _tokens(text: str) -> list[str]:
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"longer than {MAX_CHARS} characters")
    text = text.strip()
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position]!r} at character {position}")
        token = match[1] or match[2]
        if len(token) > MAX_LITERAL_DIGITS:
            raise ExpressionError(f"a number of more than {MAX_LITERAL_DIGITS} digits")
        tokens.append(token)
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum := product (± product)*, product := atom (*/ atom)*, atom := number | (sum)."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.numbers: list[int] = []

    def parse(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self.position < len(self.tokens):
            raise ExpressionError(f"unexpected {self.tokens[self.position]!r}")
        return value, self.numbers

    def _next(self, *wanted: str) -> str | None:
        if self.position < len(self.tokens) and self.tokens[self.position] in wanted:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def _sum(self) -> Fraction:
        negative = self._next("-") is not None
        value = self._product()
        value = -value if negative else value
        while operator := self._next("+", "-"):
            term = self._product()
            value = value + term if operator == "+" else value - term
        return value

    def _product(self) -> Fraction:
        value = self._atom()
        while operator := self._next("*", "/"):
            factor = self._atom()
            if operator == "*":
                value *= factor
            elif factor == 0:
                raise ExpressionError("division by zero")
            else:
                value /= factor
        return value

    def _atom(self) -> Fraction:
        if self._next("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise ExpressionError(f"parentheses nested more than {MAX_DEPTH} deep")
            value = self._sum()
            if not self._next(")"):
                raise ExpressionError("missing ')'")
            self.depth -= 1
            return value
        if self.position < len(self.tokens) and self.tokens[self.position].isdigit():
            self.position += 1
            self.numbers.append(int(self.tokens[self.position - 1]))
            return Fraction(self.numbers[-1])
        raise ExpressionError("a number or '(' was expected")
