"""Many searches over one model: what their prompts share, what they leave behind, and who fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.models.load import LoadedModel
from frtool.search.events import Ended, Event, NodeAdded
from frtool.session import Session
from frtool.solving.custom import Custom
from frtool.solving.many import Attempt, Many
from frtool.solving.question import Question

SYSTEM = "you are a careful reckoner and you show every step of the way."
PROMPTS = ["how much is 1 + 1", "how much is 2 * 3", "what is 7 - 4", "why"]


def configured(loaded: LoadedModel, **settings: Any) -> SearchConfig:
    given = {"algorithm": "best-of-n", "algorithm_options": {"n": 3}, "max_step_tokens": 6, "max_depth": 2}
    return SearchConfig("", model=loaded.name, device="cpu", **{**given, **settings})


def opened(loaded: LoadedModel, custom: Custom | None = None, **settings: Any) -> Many:
    return Many.open(replace(configured(loaded, **settings), prompt="(many)"), custom=custom, loaded=loaded)


def ends(events: Iterator[tuple[Attempt, Event]]) -> dict[str, tuple[Attempt, Ended]]:
    return {attempt.question.prompt: (attempt, event) for attempt, event in events if isinstance(event, Ended)}


def clean(many: Many) -> bool:
    many.forest.allocator.check()
    return many.forest.allocator.free_blocks == many.forest.allocator.num_blocks and not many.active


@pytest.mark.parametrize("scorer", ["auto", "logprob"])
def test_a_system_prompt_is_read_once_and_stored_once(loaded_model: Callable[..., LoadedModel], scorer: str) -> None:
    many = opened(loaded_model(), system=SYSTEM, scorer=scorer, batch=4)
    trunk = many._trunk
    assert trunk is not None
    assert trunk.prompt_tokens >= len(SYSTEM)
    shared = trunk.prompt_tokens // many.forest.allocator.block_size
    blocks = trunk.trunk.branch_id
    assert blocks is not None
    first = many.forest.allocator.block_table(blocks)[:shared].tolist()
    seen = 0
    for _, event in many.run(Question(prompt) for prompt in PROMPTS):
        if isinstance(event, NodeAdded):
            for root in many.forest.roots[1:]:
                assert root.trunk.branch_id is not None
                assert many.forest.allocator.block_table(root.trunk.branch_id)[:shared].tolist() == first
                seen += 1
    assert seen
    assert clean(many)


@pytest.mark.parametrize("algorithm", ["best-of-n", "beam", "mcts"])
def test_each_gives_what_it_gives_alone(loaded_model: Callable[..., LoadedModel], algorithm: str) -> None:
    loaded = loaded_model()
    options = {"n": 3} if algorithm == "best-of-n" else {}
    settings = {"algorithm": algorithm, "algorithm_options": options, "steps": 20, "batch": 7, "system": SYSTEM}
    many = opened(loaded, **settings)
    found = ends(many.run(Question(prompt) for prompt in PROMPTS))
    assert set(found) == set(PROMPTS)
    for attempt, ended in found.values():
        assert attempt.problem is not None
        alone = list(Session.open(attempt.problem.config, loaded=loaded).run())[-1]
        assert isinstance(alone, Ended)
        assert (alone.best, alone.answer, alone.reward, alone.nodes) == (
            *(ended.best, ended.answer, ended.reward),
            ended.nodes,
        )
        assert alone.policy_tokens == ended.policy_tokens
    assert clean(many)


def test_those_that_fail_say_why_and_the_others_go_on(loaded_model: Callable[..., LoadedModel]) -> None:
    class Moody:
        name = "moody"

        def score(self, nodes: Any, steps: Any, tree: Any) -> list[float]:
            if any("4" in node.text for node in nodes):
                raise FrtoolError("it does not like fours")
            return [0.5] * len(nodes)

    many = opened(loaded_model(max_positions=64), Custom(scorer=Moody()), batch=4)
    prompts = [*PROMPTS, "x" * 70, " ", "again", "and again", "and so on", "until one of them has it"]
    found = ends(many.run(Question(prompt) for prompt in prompts))
    failures = {prompt: attempt.failure(ended) for prompt, (attempt, ended) in found.items()}
    assert set(found) == set(prompts)
    assert isinstance(failures["x" * 70], UsageError)
    assert "at most 64" in str(failures["x" * 70])
    assert "empty" in str(failures[" "])
    moody = [failure for failure in failures.values() if failure is not None and "fours" in failure.message]
    assert moody
    assert sum(failure is None for failure in failures.values()) > 1
    assert clean(many)


def test_an_interrupt_ends_those_under_way_and_begins_no_more(loaded_model: Callable[..., LoadedModel]) -> None:
    many = opened(loaded_model(), batch=3, algorithm_options={"n": 50})
    taken: list[str] = []

    def questions() -> Iterator[Question]:
        for place in range(100):
            taken.append(str(place))
            yield Question(f"what is {place} + 1")

    reasons = []
    for _, event in many.run(questions()):
        if isinstance(event, NodeAdded):
            many.interrupt()
        if isinstance(event, Ended):
            reasons.append(event.reason)
    assert set(reasons) == {"interrupted"}
    assert len(taken) <= 4
    assert clean(many)


def test_leaving_the_events_frees_everything(loaded_model: Callable[..., LoadedModel]) -> None:
    many = opened(loaded_model(), batch=3, system=SYSTEM)
    events = many.run(Question(prompt) for prompt in PROMPTS)
    for _, event in events:
        if isinstance(event, NodeAdded):
            break
    events.close()
    assert clean(many)


def test_a_source_that_has_nothing_yet_is_asked_again(loaded_model: Callable[..., LoadedModel]) -> None:
    many = opened(loaded_model(), batch=3)
    idle: list[int] = []

    def questions() -> Iterator[Question | None]:
        for prompt in PROMPTS:
            for _ in range(5):
                idle.append(many.active)
                yield None
            yield Question(prompt)

    assert set(ends(many.run(questions()))) == set(PROMPTS)
    assert 0 in idle
    assert clean(many)


def test_answers_go_to_math_verify_unless_a_puzzle_asks_for_its_own_rule(
    loaded_model: Callable[..., LoadedModel],
) -> None:
    pytest.importorskip("math_verify")
    many = opened(loaded_model())
    questions = [Question("what is 1 + 1", expected="2"), Question("Make 24 from 4, 5, 6, 10", expected="24")]
    found = ends(many.run(iter([*questions, Question("why")])))
    verifiers = [attempt.problem and attempt.problem.verifier for attempt, _ in found.values()]
    assert {None if verifier is None else verifier.name for verifier in verifiers} == {"math", "arithmetic", None}
    (attempt, _) = ends(opened(loaded_model(), expected="3").run(iter([Question("why")])))["why"]
    assert attempt.problem is not None
    assert (attempt.problem.config.expected, attempt.problem.config.verify) == ("3", "math")
    (attempt, ended) = ends(opened(loaded_model(), verify="math").run(iter([Question("why")])))["why"]
    assert "needs the problem's answer" in str(attempt.failure(ended))
