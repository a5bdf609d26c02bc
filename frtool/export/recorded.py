"""A search read back from its trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from frtool.search.events import Ended, Event, RunStarted, Tick
from frtool.trace import TraceError, TraceReader
from frtool.view.model import TreeModel

UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class RecordedSearch:
    """All events of one trace, and the tree that they grow. `complete` is False where the search's end is missing."""

    path: Path
    events: list[Event]
    model: TreeModel
    complete: bool

    @property
    def run(self) -> RunStarted:
        run = self.model.run
        assert run is not None  # the reader refuses a trace without it
        return run

    @property
    def ended(self) -> Ended:
        """How the search ended; for a trace that breaks off, what it had reached, with the reason 'unfinished'."""
        return self.model.ended or standing(self.model)

    @property
    def note(self) -> str | None:
        return None if self.complete else "the trace breaks off before the search's end"


def read_search(path: Path) -> RecordedSearch:
    """Read a whole trace. Raises TraceError for what is none."""
    reader = TraceReader(path)
    try:
        events = list(reader)
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from None
    model = TreeModel()
    for event in events:
        model.apply(event)
    return RecordedSearch(path, events, model, reader.complete)


def finished_model(search: RecordedSearch) -> TreeModel:
    """The tree with an end, whatever the trace lacks, for reports that need one."""
    if search.model.ended is None:
        search.model.apply(search.ended)
    return search.model


def event_seconds(events: list[Event]) -> list[float]:
    """When each event happened, in seconds from the start and never decreasing. Only ticks carry the clock: what lies
    between two of them is spread evenly."""
    seconds = [0.0] * len(events)
    last, known = 0, 0.0
    for i, event in enumerate(events):
        if not isinstance(event, Tick | Ended) or not event.seconds >= known:
            continue
        for j in range(last, i + 1):
            seconds[j] = known + (event.seconds - known) * (j - last) / max(i - last, 1)
        last, known = i, event.seconds
    for j in range(last, len(events)):
        seconds[j] = known
    return seconds


def standing(model: TreeModel) -> Ended:
    """What a search without an end had reached, with the reason 'unfinished'."""
    best, tick = model.best(), model.tick
    nodes = [node for node in model.walk() if node.parent is not None]
    ended = Ended(
        UNFINISHED, best.id if best.parent is not None else None, best.answer,
        reward=best.reward, verified=best.verified, seconds=model.seconds, nodes=len(nodes),
        terminals=sum(node.terminal is not None for node in nodes),
        policy_tokens=sum(n.tokens for n in nodes), prompt_tokens=model.root.tokens,
    )  # fmt: skip
    if tick is None:
        return ended
    return replace(ended, policy_tokens=tick.policy_tokens, scorer_tokens=tick.scorer_tokens)
