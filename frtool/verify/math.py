"""Mathematical equality with a known answer, by Hugging Face's math-verify."""

from __future__ import annotations

import logging
import threading
from typing import Any

from frtool.errors import UsageError

MAX_CHARS = 2_000
SECONDS = 5


class MathVerifier:
    """Right when math-verify finds the answer equal to the expected one: numbers, fractions, sets, LaTeX.

    Its time limits work through signals, so they hold in the main thread only; elsewhere only long texts are refused.
    """

    name = "math"

    def __init__(self, expected: str) -> None:
        """Raises UsageError where the package is missing or makes nothing of the expected answer."""
        try:
            import math_verify
        except ImportError:
            raise UsageError(
                "--verify math needs the package math-verify",
                hint="install it: pip install 'math-verify[antlr4_13_2]'",
            ) from None
        # It writes a line about each time limit, which the fallback of `logging` would put on the terminal.
        logging.getLogger("math_verify").addHandler(logging.NullHandler())
        self._library = math_verify
        self._expected = self._parse(expected)
        if not self._expected:
            raise UsageError("math-verify can make nothing of --expected", hint="write it as a number or in LaTeX")

    def verify(self, answer: str) -> bool:
        try:
            found = self._parse(answer)
            return bool(found) and bool(
                self._library.verify(self._expected, found, timeout_seconds=_limit(), raise_on_error=False)
            )
        except Exception:  # sympy raises what it likes on hostile text; an answer that breaks it is not right
            return False

    def _parse(self, text: str) -> list[Any]:
        if not text.strip() or len(text) > MAX_CHARS:
            return []
        written = text if "$" in text or "\\boxed" in text else f"${text}$"
        parse = self._library.parse
        for form in (written, text):
            try:
                found: list[Any] = parse(form, parsing_timeout=_limit(), raise_on_error=False)
            except Exception:
                continue
            if found:
                return found
        return []


def _limit() -> int | None:
    return SECONDS if threading.current_thread() is threading.main_thread() else None
