"""Searches from Python: `frtool.search`, `frtool.stream` and `frtool.search_many`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Unpack

from frtool.search.events import Ended, Event
from frtool.view.model import TreeModel

from .many import Attempt, Many
from .question import Question
from .result import SearchResult, search_result
from .settings import Settings, read_settings


def search(
    prompt: str, *, on_event: Callable[[Event], None] | None = None, **settings: Unpack[Settings]
) -> SearchResult:
    """Search for the answer to `prompt`.

    `settings`: see `frtool.solving.settings.Settings`; each has the default of the command line. `scorer`, `verifier`
    and `algorithm` may be objects of your own classes, by the protocols of `frtool.search.protocols`. `on_event` sees
    every event of `frtool.search.events` as it happens.

    Raises UsageError for a call that cannot work, ModelError for a model that cannot (both are FrtoolError), and what
    the search itself raises.
    """
    tree = TreeModel()
    for event in stream(prompt, **settings):
        tree.apply(event)
        if on_event is not None:
            on_event(event)
    assert tree.ended is not None
    return search_result(tree, tree.ended)


def stream(prompt: str, **settings: Unpack[Settings]) -> Iterator[Event]:
    """The events of the search that `search` makes of the same arguments, as they happen.

    The model is loaded before this returns. `RunStarted` comes first and `Ended` last; closing the iterator ends the
    search.
    """
    from frtool.session import Session

    config, custom, loaded = read_settings(prompt, settings)
    session = Session.open(config, custom=custom, loaded=loaded)

    def events() -> Iterator[Event]:
        try:
            yield from session.run()
        finally:
            session.close()

    return events()


def search_many(
    prompts: Iterable[str | Question],
    *,
    on_event: Callable[[Question, Event], None] | None = None,
    **settings: Unpack[Settings],
) -> Iterator[SearchResult]:
    """Search for the answers to all prompts in one decode batch; the results come as they are done.

    Each has the tree that `search` alone would give it; the budget is for each. `prompts` are taken as room for them
    comes, so they may be a generator. A problem that fails gives a result with its `error`, and the others go on. An
    algorithm of your own comes as a class, or as a function that makes one, because each search needs a fresh one; a
    scorer and a verifier of your own serve all.

    Raises, before it returns, UsageError and ModelError like `search`.
    """
    config, custom, loaded = read_settings("(many)", settings)
    many = Many.open(config, custom=custom, loaded=loaded)
    return _results(many.run(_questions(prompts)), on_event)


def _questions(prompts: Iterable[str | Question]) -> Iterator[Question]:
    for prompt in prompts:
        yield prompt if isinstance(prompt, Question) else Question(prompt)


def _results(
    events: Iterator[tuple[Attempt, Event]], on_event: Callable[[Question, Event], None] | None
) -> Iterator[SearchResult]:
    trees: dict[Attempt, TreeModel] = {}
    for attempt, event in events:
        tree = trees.setdefault(attempt, TreeModel())
        tree.apply(event)
        if on_event is not None:
            on_event(attempt.question, event)
        if isinstance(event, Ended):
            del trees[attempt]
            yield search_result(tree, event, attempt.question, attempt.failure(event))
