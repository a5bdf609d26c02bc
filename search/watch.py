"""What a tick tells of the steps between their beginning and their end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Protocol, runtime_checkable

MOST_TOLD = 12
"""Growing steps that a tick tells of, so that a trace of a wide batch stays small."""


@runtime_checkable
class Watchable(Protocol):
    """A generator that can be watched while it works."""

    def growing(self) -> Iterable[tuple[str, str]]:
        """Id and text so far of the steps under way that have text, first asked for first. A text only gains."""

    def take_evicted(self) -> list[str]:
        """The kept nodes whose KV was given up since the last call."""


class Watch:
    """Turns what a generator shows into what changed since the last look."""

    def __init__(self, generator: Any) -> None:
        self._source = generator if isinstance(generator, Watchable) else None
        self._told: dict[str, int] = {}

    def gained(self) -> dict[str, str]:
        """By id, the text that growing steps have gained."""
        if self._source is None:
            return {}
        texts = dict(islice(self._source.growing(), MOST_TOLD))
        gained = {name: text[self._told.get(name, 0) :] for name, text in texts.items()}
        self._told = {name: len(text) for name, text in texts.items()}
        return {name: text for name, text in gained.items() if text}

    def evicted(self) -> list[str]:
        return [] if self._source is None else self._source.take_evicted()
