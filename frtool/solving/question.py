"""One of many problems, as the caller puts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and what is known of it."""

    prompt: str
    id: str | int | None = None
    """The caller's name for it."""
    expected: str | None = None
    """The right answer, where it is known: math-verify compares, unless the prompt is an arithmetic puzzle."""
