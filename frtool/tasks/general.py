"""Where the answer stands in the free text of any model."""

from __future__ import annotations

import re

from frtool.verify.arithmetic import ArithmeticVerifier, is_expression

from .puzzle import Puzzle

MAX_TEXT_CHARS = 200_000
MAX_ANSWER_CHARS = 2_000
_LEAD = re.compile(
    r"(?:\bthe (?:final )?answer is|(?:^|\n)[ \t>*#]{0,8}(?:final )?answer)[ \t]*[*]{0,2}[ \t]*:?", re.IGNORECASE
)
_CANDIDATE = re.compile(r"[0-9(][0-9+\-*/() \t\u00d7\u00f7\u00b7\u2212\u2013\\{}a-z]{0,200}", re.IGNORECASE)


class GeneralTask:
    """Any prompt, any model: implements `search.protocols.Task`."""

    def answer(self, text: str) -> str | None:
        """The content of the last `\\boxed{…}`, else what follows the last "the answer is" or "Answer:" up to the
        end of the line, else the whole text; stripped. None for an empty text."""
        text = text[-MAX_TEXT_CHARS:]
        found = _boxed(text)
        if found is None:
            found = _after_lead(text)
        if found is None:
            found = text.strip()
        return found or None

    def key(self, text: str) -> str:
        return " ".join(text.split())


class ExpressionTask(GeneralTask):
    """A puzzle put to a model that writes as it likes: the answer is an expression somewhere in the text."""

    def __init__(self, puzzle: Puzzle) -> None:
        self.puzzle = puzzle

    def answer(self, text: str) -> str | None:
        """The last expression that uses exactly the puzzle's numbers, in plain `+ - * /`.

        The general answer is looked at first, then every line from the end. An expression with the right numbers
        counts whatever its value: the verifier judges that. None where there is none.
        """
        general = super().answer(text)
        lines = text[-MAX_TEXT_CHARS:].splitlines()[-200:]
        for piece in [general or "", *reversed(lines)]:
            for match in reversed(_CANDIDATE.findall(piece[-MAX_ANSWER_CHARS:])):
                candidate = _plain(match)
                if is_expression(candidate) and ArithmeticVerifier(self.puzzle).uses_numbers(candidate):
                    return candidate
        return None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 1, start + len("\\boxed{")
    for i in range(first, min(len(text), first + MAX_ANSWER_CHARS)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[first:i].strip() or None
    return None


def _after_lead(text: str) -> str | None:
    last = None
    for match in _LEAD.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() :].lstrip(" \t*:").lstrip("\n")
    line = rest.split("\n", 1)[0].strip().strip("*$").strip()
    return line.removesuffix(".").strip()[:MAX_ANSWER_CHARS] or None


_SIGNS = {
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
    "\u00d7": "*",
    "\u00b7": "*",
    "\u00f7": "/",
    "\u2212": "-",
    "\u2013": "-",
}


def _plain(text: str) -> str:
    for written, sign in _SIGNS.items():
        text = text.replace(written, sign)
    return "".join(re.split(r"[a-z\\{}]", text, maxsplit=1, flags=re.IGNORECASE)[0].split())
