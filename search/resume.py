"""Going on with a search that broke off, to the very end that it would have come to."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, cast

from .events import Backup, Ended, Event, NodeAdded, Pruned, Resumed, RunStarted, Selected, Tick, to_record
from .record import Record
from .run import run_search


class Mismatch(ValueError):
    """The search does not go the way that the record says."""


def record_of(events: Iterable[Event]) -> Record:
    """The record that a trace's events are.

    What a search gave when it was cut short (its end, and steps that had waited for their turn) is not part of what an
    undisturbed one gives, so it stands in no `Record.events`. Raises ValueError without a RunStarted first.
    """
    standing: list[Event] = []
    nodes: dict[str, NodeAdded] = {}
    seconds, reason, cut = 0.0, "killed", False
    for event in events:
        cut = cut or isinstance(event, Ended) or (isinstance(event, NodeAdded) and event.late)
        if isinstance(event, NodeAdded):
            nodes[event.id] = event
        if isinstance(event, Tick | Ended | Resumed):
            seconds = max(seconds, event.seconds)
        if isinstance(event, Ended):
            reason = event.reason
        if not cut:
            standing.append(event)
    if not standing or not isinstance(standing[0], RunStarted):
        raise ValueError("a record begins with a `run` event")
    torn = _torn(standing)
    for event in standing[torn:]:
        if isinstance(event, NodeAdded):
            del nodes[event.id]
    return Record(standing[0], standing[:torn], nodes, seconds, reason)


def _torn(events: list[Event]) -> int:
    """Where steps begin that were judged together with one that is missing, and with it what that cost."""
    start = len(events)
    for place, event in enumerate(events):
        if isinstance(event, NodeAdded) and event.duplicate_of is None:
            start = len(events) if event.judge_tokens is not None else min(start, place)
    return start


def continue_search(record: Record, *, clock: Callable[[], float] = time.monotonic, **settings: Any) -> Iterator[Event]:
    """`run_search` that goes on from a record: first all that stands in it, then Resumed, then what is new.

    `settings` are those of the recorded `run_search`; the generator is a `Restorer`. The budgets count what was spent
    before. A search that is stopped before it has come through the record gives no Resumed. Raises Mismatch as soon as
    it goes another way: then its configuration, its model or the machine is not what it was.
    """
    stopwatch = _Stopwatch(clock, record.seconds)
    run = cast(Generator[Event, None, None], run_search(clock=stopwatch, record=record, **settings))
    with contextlib.closing(run):
        try:
            yield from _continued(record, run, stopwatch)
        except KeyboardInterrupt as interrupt:
            yield run.throw(interrupt)  # its end, where the interrupt fell outside of it
            raise


def _continued(record: Record, run: Iterator[Event], stopwatch: _Stopwatch) -> Iterator[Event]:
    ahead = _Ahead(record)
    for event in run:
        if isinstance(event, RunStarted):
            yield record.started
            continue
        if stopwatch.runs:
            yield event
            continue
        if isinstance(event, Selected):
            event = ahead.split(event)
        elif ahead.follows(event):
            yield event
            continue
        elif ahead.left and (isinstance(event, Ended) or (isinstance(event, NodeAdded) and event.late)):
            yield event  # stopped on the way
            continue
        elif not isinstance(event, Tick):
            ahead.check(event)
        if isinstance(event, Selected) and event.ids:
            yield event
        if ahead.left:
            continue
        stopwatch.start()
        yield Resumed(record.seconds, len(record.nodes), record.reason)
        if ahead.asked_anew:
            yield Selected(ahead.asked_anew)
        if not isinstance(event, Selected):
            yield event


class _Ahead:
    """The recorded events that are still to come."""

    def __init__(self, record: Record) -> None:
        self._events = deque(event for event in record.events if isinstance(event, NodeAdded | Backup | Pruned))
        self._asked = {name for event in record.events if isinstance(event, Selected) for name in event.ids}
        self.asked_anew: list[str] = []
        """Asked for while the record was not through, but not by it."""

    @property
    def left(self) -> bool:
        return bool(self._events or self._asked)

    def split(self, event: Selected) -> Selected:
        """The part of what is asked for that the record asked for too. Which steps are asked for at once depends on the
        room that the batch had."""
        known = [name for name in event.ids if name in self._asked]
        self.asked_anew += [name for name in event.ids if name not in self._asked]
        self._asked.difference_update(known)
        return Selected(known)

    def follows(self, event: Event) -> bool:
        """Whether the event is the recorded one that is next, which it takes off."""
        if not self._events or not _same(self._events[0], event):
            return False
        self._events.popleft()
        return True

    def check(self, event: Event) -> None:
        """Raise Mismatch where the record says something else."""
        if not self._events:
            return
        recorded = self._events[0]
        said = f"`{recorded.kind}` of {_name(recorded)} was recorded"
        if type(recorded) is type(event) and _name(recorded) == _name(event):
            raise Mismatch(f"{said} with another {', '.join(_differing(recorded, event))}")
        raise Mismatch(f"{said}, and now comes `{event.kind}` of {_name(event)}")


def _name(event: Event) -> str:
    return getattr(event, "id", None) or ", ".join(getattr(event, "ids", ()))


def _same(recorded: Event, event: Event) -> bool:
    return type(recorded) is type(event) and not _differing(recorded, event)


def _differing(recorded: Event, event: Event) -> list[str]:
    """Fields that differ. When a step came depends on the room that the cache had."""
    a, b = to_record(recorded), to_record(event)
    return [name for name in a if name != "poll" and a[name] != b[name] and (a[name] == a[name] or b[name] == b[name])]


class _Stopwatch:
    """Reads 0 at first, then what was spent before, and goes on from there once it is started."""

    def __init__(self, clock: Callable[[], float], spent: float) -> None:
        self._clock = clock
        self._spent = spent
        self._fresh = True
        self._began: float | None = None

    @property
    def runs(self) -> bool:
        return self._began is not None

    def start(self) -> None:
        self._began = self._clock()

    def __call__(self) -> float:
        if self._fresh:
            self._fresh = False
            return 0.0
        return self._spent if self._began is None else self._spent + self._clock() - self._began
