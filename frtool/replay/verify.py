"""Running a recorded search again from its own configuration, to see whether the same tree grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.export.recorded import UNFINISHED, RecordedSearch
from frtool.search.events import Ended, Event, NodeAdded, RunStarted
from frtool.trace import TraceError

from .difference import THE_END, Comparison, Difference, added, compare_trees, difference_of

CHANCE = {"seconds", "interrupted", "memory", UNFINISHED}
"""Ends that may come anywhere: by a clock, a key, a full memory or a cut file. Any other comes at the same node."""
_ENDS = ("reason", "best", "answer", "votes", "verified", "policy_tokens", "scorer_tokens", "nodes", "terminals")
_SURROUNDINGS = (
    "name", "parameters", "weights", "dtype", "device", "capability", "attention", "scorer", "verifier", "torch",
    "frtool",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verification:
    """`comparison` is of the recorded search (a) with the new one (b). `whole` is False where the recorded end was not
    repeatable: then the new run was ended once every recorded step had come. `surroundings` are the facts about model
    and machine that differ, recorded and new."""

    comparison: Comparison
    whole: bool
    surroundings: dict[str, tuple[Any, Any]]


def is_repeatable(search: RecordedSearch) -> bool:
    """Whether a second run ends where this one did."""
    return search.ended.reason not in CHANCE and not search.ended.reason.startswith("failed")


def recorded_config(
    search: RecordedSearch, *, device: str | None, trust_remote_code: bool, trust_verify_command: bool
) -> SearchConfig:
    """The configuration to run again. Raises TraceError for one that this frtool cannot run, and what
    `trusted_config` raises."""
    trust = {"trust_remote_code": trust_remote_code, "trust_verify_command": trust_verify_command}
    config = trusted_config(search.path, search.run, **trust)
    if not is_repeatable(search):
        config = replace(config, seconds=None, tokens=config.tokens or 1 << 60)
    return replace(config, device=device or config.device).resolved()


def trusted_config(path: Path, run: RunStarted, *, trust_remote_code: bool, trust_verify_command: bool) -> SearchConfig:
    """The configuration of a recorded search. Raises TraceError for one that this frtool cannot run.

    Whether code may run that the trace names, a model's own or a verifying program, is never taken from the file:
    `trust_remote_code` and `trust_verify_command` are the caller's word, and UsageError says that one is wanted.
    """
    known = {item.name for item in fields(SearchConfig)}
    settings = {**run.config, "prompt": run.prompt}
    if unknown := sorted(set(settings) - known):
        raise TraceError(f"{path} has settings that this frtool does not know: {', '.join(unknown)[:200]}")
    if settings.get("trust_remote_code") and not trust_remote_code:
        raise UsageError(
            f"{path} ran Python code that its model brings",
            hint="--trust-remote-code runs it again, if you trust it",
        )
    if settings.get("verify_command") and not trust_verify_command:
        raise UsageError(
            f"{path} ran a program on its answers: {settings['verify_command']}",
            hint="--trust-verify-command runs it again, if you trust it",
        )
    try:
        return SearchConfig(**settings).resolved()
    except (TypeError, ValueError, AttributeError) as error:
        raise TraceError(f"the configuration in {path} does not work: {error}") from None


def verify(
    search: RecordedSearch,
    config: SearchConfig,
    *,
    on_progress: Callable[[str], None],
    on_event: Callable[[Event], None],
) -> Verification:
    """Run `config` and hold every step against the recorded one; the run ends at the first that differs.

    Raises what opening and running a session raise, and FrtoolError where the new run ends too early for a verdict.
    """
    from frtool.session import Session

    expected = added(search.events)
    whole = is_repeatable(search)
    session = Session.open(config, on_progress=on_progress)
    events: list[Event] = []
    met = 0
    difference: Difference | None = None
    for event in session.run():
        events.append(event)
        on_event(event)
        if isinstance(event, NodeAdded) and difference is None:
            recorded = expected.get(event.id)
            met += recorded is not None
            if recorded is not None or whole:
                # What stops by the clock may have normalised the last priors over fewer siblings.
                difference = difference_of(event.id, recorded, event, ignore=() if whole else ("prior",))
            if difference is not None or (not whole and met == len(expected)):
                session.interrupt()
    again = next((e for e in reversed(events) if isinstance(e, Ended)), None)
    if difference is None and again is not None and again.reason.startswith("failed"):
        raise FrtoolError(f"the search could not be run again: {again.reason}")
    return Verification(_comparison(search, events, difference, whole), whole, _surroundings(search, events))


def _comparison(search: RecordedSearch, events: list[Event], difference: Difference | None, whole: bool) -> Comparison:
    compared = compare_trees(search.events, events, ignore=() if whole else ("prior",))
    if difference is not None:
        return replace(compared, difference=difference)
    if not whole:
        # Only what was recorded had to come again; how often it was visited depends on where the run was ended.
        recorded, new = added(search.events), added(events)
        lost = next((node for node in recorded if node not in new), None)
        lacking = Difference(lost, None, recorded[lost].text, None) if lost is not None else None
        return replace(compared, difference=lacking)
    return replace(compared, difference=compared.difference or _ends(search.ended, events))


def _ends(recorded: Ended, events: list[Event]) -> Difference | None:
    again = next(e for e in reversed(events) if isinstance(e, Ended))
    for name in _ENDS:
        if getattr(recorded, name) != getattr(again, name):
            return Difference(THE_END, name, getattr(recorded, name), getattr(again, name))
    return None


def _surroundings(search: RecordedSearch, events: list[Event]) -> dict[str, tuple[Any, Any]]:
    here = getattr(events[0], "model", {}) if events else {}
    there = search.run.model
    known = [name for name in _SURROUNDINGS if name in there]  # an older trace says less
    return {name: (there[name], here.get(name)) for name in known if there[name] != here.get(name)}
