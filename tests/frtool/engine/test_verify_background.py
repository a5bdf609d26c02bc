"""Verifying programs of many searches: they run beside the model, and no tree depends on when they are done."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frtool.config import SearchConfig
from frtool.errors import FrtoolError
from frtool.models.load import LoadedModel
from frtool.search.events import Ended, Event, NodeAdded, to_record
from frtool.session import Session
from frtool.solving.many import Many
from frtool.solving.question import Question

PROMPTS = ["how much is 1 + 1", "how much is 2 * 3", "what is 7 - 4"]
Model = Callable[..., LoadedModel]


def settings(loaded: LoadedModel, command: str, **changes: Any) -> dict[str, Any]:
    chosen = {"algorithm": "best-of-n", "algorithm_options": {"n": 3}, "max_step_tokens": 6, "max_depth": 2}
    return {"model": loaded.name, "device": "cpu", "verify_command": command, **chosen, **changes}


def judging(folder: Path, seconds: str = "0") -> str:
    """A command that takes a while and finds answers with an even number of bytes right."""
    script = folder / "judge.sh"
    script.write_text(f'sleep {seconds}\ntest $(( $(wc -c < "$1") % 2 )) = 0\n')
    return f"sh {script}"


def told(events: list[Event]) -> Any:
    last = events[-1]
    assert isinstance(last, Ended)
    nodes = [to_record(event) for event in events if isinstance(event, NodeAdded)]
    return nodes, last.reason, last.best, last.answer, last.verified, last.policy_tokens


def threads() -> int:
    return sum(thread.name.startswith("frtool-verify") for thread in threading.enumerate())


@pytest.mark.parametrize("algorithm", ["best-of-n", "beam", "mcts"])
def test_the_trees_and_verdicts_are_those_of_lone_searches(loaded_model: Model, tmp_path: Path, algorithm: str) -> None:
    loaded = loaded_model()
    options = {"n": 3} if algorithm == "best-of-n" else {}
    changes = {"algorithm": algorithm, "algorithm_options": options, "steps": 12, "batch": 48}
    command = judging(tmp_path, "0.01")
    alone = {}
    for prompt in PROMPTS:
        config = SearchConfig(prompt, **settings(loaded, command, **changes))
        alone[prompt] = told(list(Session.open(config, loaded=loaded).run()))
    assert {node["verified"] for nodes, *_ in alone.values() for node in nodes} >= {True, False}
    many = Many.open(SearchConfig("(many)", **settings(loaded, command, **changes)), loaded=loaded)
    found: dict[str, list[Event]] = {prompt: [] for prompt in PROMPTS}
    for attempt, event in many.run(map(Question, PROMPTS)):
        found[attempt.question.prompt].append(event)
    assert {prompt: told(events) for prompt, events in found.items()} == alone
    assert many.forest.allocator.free_blocks == many.forest.allocator.num_blocks
    assert not threads()


def test_a_slow_program_does_not_keep_the_model_from_the_others(loaded_model: Model, tmp_path: Path) -> None:
    loaded = loaded_model()
    gate = tmp_path / "gate"
    waits = tmp_path / "waits.sh"
    waits.write_text(f"while [ ! -e {gate} ]; do sleep 0.01; done\n")
    many = Many.open(SearchConfig("(many)", **settings(loaded, f"sh {waits}", batch=48)), loaded=loaded)
    polls = 0
    poll = many.forest.poll

    def counted() -> None:
        nonlocal polls
        polls += 1
        poll()
        if not many.forest.outstanding and not gate.exists():  # all is grown, and nothing judged
            gate.touch()

    many.forest.poll = counted  # type: ignore[method-assign]
    ends = [event for _, event in many.run(map(Question, PROMPTS)) if isinstance(event, Ended)]
    assert [end.verified for end in ends] == [True] * 3
    assert polls > 5
    assert gate.exists()


def test_a_program_that_vanishes_fails_its_search_in_one_line(loaded_model: Model, tmp_path: Path) -> None:
    loaded = loaded_model()
    program = tmp_path / "judge"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    many = Many.open(SearchConfig("(many)", **settings(loaded, str(program), batch=48)), loaded=loaded)

    def questions() -> Iterator[Question]:
        yield Question(PROMPTS[0])
        program.unlink()

    ((attempt, ended),) = [(a, event) for a, event in many.run(questions()) if isinstance(event, Ended)]
    failure = attempt.failure(ended)
    assert isinstance(failure, FrtoolError)
    assert "cannot be run" in failure.message
    assert many.forest.allocator.free_blocks == many.forest.allocator.num_blocks
    assert not threads()


def test_leaving_ends_the_program_at_once(loaded_model: Model, tmp_path: Path) -> None:
    loaded = loaded_model()
    mark = tmp_path / "pid"
    command = f"sh -c 'echo $$ > {mark}; exec sleep 1000'"
    many = Many.open(SearchConfig("(many)", **settings(loaded, command, verify_seconds=900.0, batch=48)), loaded=loaded)
    poll = many.forest.poll

    def impatient() -> None:
        poll()
        if mark.exists() and mark.read_text().strip():
            raise KeyboardInterrupt

    many.forest.poll = impatient  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        list(many.run(map(Question, PROMPTS)))
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert not threads()
    assert many.forest.allocator.free_blocks == many.forest.allocator.num_blocks
