"""Reading a trace so that its search can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frtool.errors import UsageError
from frtool.search.events import Ended, Event
from frtool.search.record import Record
from frtool.search.resume import record_of
from frtool.trace import TraceError, TraceReader
from frtool.view.safe import safe_json

RESUMABLE = ("killed", "interrupted", "memory")
"""Ends that an undisturbed search would not have come to, and 'failed: …'."""
_NEEDS_VERSION = 3
_SAME = (
    "name", "architecture", "parameters", "weights", "dtype", "device", "capability", "attention", "scorer", "verifier",
    "preset", "torch", "frtool",
)  # fmt: skip
"""Facts about model and machine that decide how logits round, and so which tokens are sampled."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A search that can go on. The first `keep` bytes of the trace stay; `record` is what is known."""

    path: Path
    record: Record
    keep: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A search that has come to its own end."""

    path: Path
    events: list[Event]
    ended: Ended


def read_trace(path: Path) -> Unfinished | Finished:
    """What is left to do of the search in a trace. Raises TraceError for what is none, and for a version that does
    not tell how its steps were drawn."""
    reader = TraceReader(path)
    events: list[Event] = []
    ends: list[int] = []
    try:
        for event in reader:
            events.append(event)
            ends.append(reader.offset)
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from None
    record = record_of(events)
    version = record.started.version
    if version < _NEEDS_VERSION:
        raise TraceError(
            f"{path} is a trace of version {version}, which does not hold how its steps were drawn; a search can go on "
            f"from version {_NEEDS_VERSION}",
            hint="run its configuration again, with `frtool replay --verify` or a new `frtool search`",
        )
    last = events[-1]
    if isinstance(last, Ended) and last.reason not in RESUMABLE and not last.reason.startswith("failed"):
        return Finished(path, events, last)
    return Unfinished(path, record, ends[len(record.events) - 1])


def check_surroundings(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise UsageError that names what is not as it was when the search broke off: it would go another way here."""
    now = json.loads(safe_json(here))  # as it would come back from a trace
    differing = [name for name in _SAME if recorded.get(name) != now.get(name)]
    if not differing:
        return
    name = differing[0]
    more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
    raise UsageError(
        f"the search cannot go on here: {name} is {now.get(name)!r}, and was {recorded.get(name)!r}{more}",
        hint="resume it with the model, on the machine and with the versions that began it, or begin a new search",
    )
