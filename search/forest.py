"""Many searches at once: they share every pass of the model, and each ends when it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from .events import Event
from .protocols import Forest, OutOfMemory
from .run import Search, failed

Start = Callable[[], Search]
"""Plants a generator in the forest and begins its search. It may raise; OutOfMemory asks to be called again later."""


def run_forest(
    forest: Forest, starts: Iterable[Start], interrupted: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Event]]:
    """Run the searches that `starts` begin, in that order, and yield every event with the place of its search.

    The next search begins as soon as the forest has room for it. One that fails ends with the reason 'failed: …', and
    the others go on; so does one that finds no memory, with 'memory' (the youngest, when there is none for any). An
    error of the forest itself ends all that are under way and is raised. After `interrupted()` none is begun.
    """
    waiting = deque(enumerate(starts))
    active: dict[int, Search] = {}

    def advance(place: int, error: Exception | None = None) -> Iterator[tuple[int, Event]]:
        """Let a search go on until it waits for the model or ends."""
        search = active[place]
        try:
            event = search.throw(error) if error is not None else next(search)
            while event is not None:
                yield place, event
                event = next(search)
        except StopIteration:
            del active[place]
        except Exception:  # its last event has told
            del active[place]

    try:
        while True:
            for place in list(active):
                yield from advance(place)
            while waiting and not interrupted() and (not active or forest.roomy):
                place, start = waiting.popleft()
                try:
                    active[place] = start()
                except OutOfMemory as error:
                    if active:
                        waiting.appendleft((place, start))
                        break
                    yield place, failed(error)
                    continue
                except Exception as error:
                    yield place, failed(error)
                    continue
                yield from advance(place)
            if not active:
                return
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
