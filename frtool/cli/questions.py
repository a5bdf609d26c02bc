"""Problems from lines: a JSON object, or a prompt as it stands."""

from __future__ import annotations

import json

from frtool.errors import UsageError
from frtool.solving.question import Question

from .lines import Line

_EXAMPLE = 'for example {"prompt": "Make 24 from 4, 5, 6, 10", "id": "a", "answer": "24"}'


class QuestionReader:
    """Reads one line after the other. A line that begins with `{` is an object, any other a prompt."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def read(self, line: Line) -> Question:
        """Its id is the line's number, unless it says another. Raises UsageError for a line that is no problem."""
        if line.error is not None:
            raise UsageError(line.error)
        text = line.text.strip()
        question = _object(text, line.number) if text.startswith("{") else Question(text, line.number)
        if "\0" in question.prompt or not _is_unicode(question.prompt) or not _is_unicode(question.expected or ""):
            raise UsageError("its text holds what is no character")
        first = self._places.setdefault(str(question.id), line.number)
        if first != line.number:
            raise UsageError(f"its id {str(question.id)[:80]!r} is that of line {first}")
        return question


def _object(text: str, number: int) -> Question:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("it begins like a JSON object, but is none", hint=_EXAMPLE) from None
    prompt, id, answer = record.get("prompt"), record.get("id"), record.get("answer")
    if not isinstance(prompt, str):
        raise UsageError('it has no text as "prompt"', hint=_EXAMPLE)
    if not isinstance(id, str | int | None) or isinstance(id, bool) or (isinstance(id, str) and not _is_unicode(id)):
        raise UsageError('its "id" is neither text nor a whole number', hint=_EXAMPLE)
    if not isinstance(answer, str | int | float | None) or isinstance(answer, bool):
        raise UsageError('its "answer" is neither text nor a number', hint=_EXAMPLE)
    return Question(prompt, number if id is None else id, None if answer is None else str(answer))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
