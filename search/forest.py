"""Many searches at once: they share every pass of the model, and each ends when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .events import Event
from .protocols import Forest, OutOfMemory
from .run import Scoring, Search, failed

Start = Callable[[], Search]
"""Plants a generator in the forest and begins its search. It may raise; OutOfMemory asks to be called again later."""


def run_forest(
    forest: Forest,
    starts: Iterable[Start | None],
    interrupted: Callable[[], bool] = lambda: False,
    score: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Event]]:
    """Run the searches that `starts` begin, in that order, and yield every event with the place of its search.

    The next search is taken from `starts` and begins as soon as the forest has room for it; None says that there is
    none yet, and the forest asks again after its next pass. One that fails ends with the reason 'failed: …', and the
    others go on; so does one that finds no memory, with 'memory' (the youngest, when there is none for any). An error
    of the forest itself ends all that are under way and is raised. After `interrupted()` none is begun.

    `score` computes what the scorers of the searches have been asked for, when all that can ask have.
    """
    queue = _Queue(starts)
    active: dict[int, Search] = {}
    asking: list[int] = []

    def advance(place: int, error: Exception | None = None) -> Iterator[tuple[int, Event]]:
        """Let a search go on until it waits for the model, asks its scorer or ends."""
        search = active[place]
        try:
            event = search.throw(error) if error is not None else next(search)
            while event is not None:
                if isinstance(event, Scoring):
                    asking.append(place)
                    return
                yield place, event
                event = next(search)
        except StopIteration:
            del active[place]
        except Exception:  # its last event has told
            del active[place]

    try:
        while True:
            for place in list(active):
                if place not in asking:
                    yield from advance(place)
            while asking:
                try:
                    score()
                except Exception as error:
                    for place in list(active):
                        yield from advance(place, error)
                    raise
                answered, asking[:] = list(asking), []
                for place in answered:
                    yield from advance(place)
            while not interrupted() and (not active or forest.roomy) and queue.advance():
                place, start = queue.first
                try:
                    active[place] = start()
                except OutOfMemory as error:
                    if active:
                        break
                    yield place, failed(error)
                except Exception as error:
                    yield place, failed(error)
                else:
                    yield from advance(place)
                queue.drop()
            if not active:
                if queue.over or interrupted():
                    return
                continue
            try:
                forest.poll()
            except OutOfMemory as error:
                yield from advance(max(active), error)
            except Exception as error:
                for place in list(active):
                    yield from advance(place, error)
                raise
    finally:
        for search in active.values():
            search.close()


class _Queue:
    """The searches to come, of which one is looked at ahead."""

    def __init__(self, starts: Iterable[Start | None]) -> None:
        self._starts = iter(starts)
        self._next: Start | None = None
        self._place = -1
        self.over = False

    @property
    def first(self) -> tuple[int, Start]:
        assert self._next is not None, "advance comes first"
        return self._place, self._next

    def advance(self) -> bool:
        """Whether there is a first one now."""
        if self._next is None and not self.over:
            try:
                self._next = next(self._starts)
            except StopIteration:
                self.over = True
            self._place += self._next is not None
        return self._next is not None

    def drop(self) -> None:
        self._next = None
