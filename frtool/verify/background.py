"""Verifying programs that run while searches go on, and events that wait for what they say."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, cast

from frtool.search.events import Ended, Event, NodeAdded
from frtool.search.protocols import Verifier
from frtool.search.run import Scoring, Search, failed

from .command import CommandVerifier

_GLANCE = 0.002
"""Seconds that a search which has only verdicts to wait for lets pass between two passes of the others."""


class Background:
    """Runs the programs of `CommandVerifier`s in a thread, one after the other: what a program leaves behind is found
    among all children of this process, so two at a time would take each other's.

    For verifiers that only grade: the searches do not look at their verdicts, so no tree depends on when they come.
    `close` ends a program that runs.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "frtool-verify")
        self._over = threading.Event()

    def take(self, verifier: Verifier) -> Verifier | None:
        """A verifier whose verdicts are promises, for a search that `in_order` leads; None where `verifier` runs no
        program."""
        return _Promising(verifier, self._thread, self._over) if isinstance(verifier, CommandVerifier) else None

    def close(self) -> None:
        self._over.set()
        self._thread.shutdown(wait=True, cancel_futures=True)


class _Promising:
    def __init__(self, verifier: CommandVerifier, thread: ThreadPoolExecutor, over: threading.Event) -> None:
        self.name = verifier.name
        self._verifier, self._thread, self._over = verifier, thread, over

    def verify(self, answer: str) -> bool:
        """A `Future` of the verdict, which nothing between here and `in_order` looks at."""
        return cast(bool, self._thread.submit(lambda: self._verifier.judge(answer, self._over).right))


def in_order(search: Search) -> Search:
    """The search, whose events are held back, in their order, until the verdicts in them are there. It ends when its
    last one is. A verifier that fails ends it."""
    held: deque[Event] = deque()
    thrown: Exception | None = None
    failure: Exception | None = None
    try:
        while True:
            try:
                item = next(search) if thrown is None else search.throw(thrown)
            except StopIteration:
                break
            except Exception as error:  # its last event is held
                failure = error
                break
            thrown = None
            if item is None or isinstance(item, Scoring):
                yield from _told(held)
                try:
                    yield item
                except Exception as error:
                    thrown = error
            else:
                held.append(item)
                yield from _told(held)
        yield from _rest(held)
    except _Refused as refused:
        yield failed(refused.error)
        failure = refused.error
    finally:
        search.close()
    if failure is not None:
        raise failure


class _Refused(Exception):
    """The verifier failed."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _told(held: deque[Event]) -> Iterator[Event]:
    """Take the events whose verdicts are there, up to the first whose is not."""
    while held:
        verdict = _promise(held[0])
        if verdict is None:
            yield held.popleft()
        elif verdict.done():
            event = held.popleft()
            assert isinstance(event, NodeAdded | Ended)
            try:
                right = verdict.result()
            except Exception as error:
                raise _Refused(error) from None
            yield replace(event, verified=right)
        else:
            return


def _rest(held: deque[Event]) -> Iterator[Event | None]:
    """All of them. While they wait, other searches go on."""
    glance: float | None = _GLANCE
    while held:
        wait([verdict for verdict in (_promise(held[0]),) if verdict is not None], glance)
        yield from _told(held)
        if held and glance is not None:
            try:
                yield None
            except Exception:  # what befalls the others is nothing to a search that is over
                glance = None


def _promise(event: Event) -> Future[bool] | None:
    verified: Any = getattr(event, "verified", None)
    return verified if isinstance(verified, Future) else None
