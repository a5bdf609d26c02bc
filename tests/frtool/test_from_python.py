"""`frtool.search`, `frtool.stream` and `frtool.search_many`, and that the package `frtool.search` stays one."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

import pytest

import frtool
from frtool.config import SearchConfig
from frtool.errors import FrtoolError, UsageError
from frtool.search.events import Ended, NodeAdded, RunStarted
from frtool.search.greedy import Greedy
from frtool.search.protocols import Step
from frtool.search.tree import Node, SearchTree
from frtool.solving.settings import Settings

PUZZLE = "Make 24 from 4, 5, 6, 10"


@pytest.fixture(scope="module")
def model() -> Any:
    return frtool.load_model("embedded", device="cpu")


@pytest.mark.parametrize(
    "code",
    [
        "import frtool; assert callable(frtool.search); from frtool.search.registry import ALGORITHMS",
        "from frtool.search.events import Ended; import frtool; assert callable(frtool.search)",
        "from frtool import search; assert callable(search); import frtool.search.run; search.run.run_search",
        "import frtool, sys; frtool.search, frtool.Budget; assert 'torch' not in sys.modules",
        "import frtool, inspect; assert inspect.ismodule(frtool.search); assert frtool.search.__doc__",
    ],
)
def test_the_package_is_a_function_too(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_search_gives_what_its_events_tell(model: Any) -> None:
    seen: list[Any] = []
    settings: Settings = {"model": model, "algorithm": "best-of-n", "options": {"n": 4}}
    found = frtool.search(PUZZLE, budget=frtool.Budget(steps=30), on_event=seen.append, **settings)
    assert isinstance(seen[0], RunStarted)
    assert seen[-1] == found.usage
    assert (found.answer, found.reason, found.score) == (seen[-1].answer, seen[-1].reason, seen[-1].reward)
    assert found.usage.best is not None
    assert found.steps == tuple(node.text for node in found.tree.nodes[found.usage.best].path()[1:])
    assert sum(found.answers.values()) <= found.usage.terminals == 4
    assert found.config["algorithm_options"] == {"n": 4, "aggregate": "last", "vote": "best"}
    assert found.error is None


def test_a_stream_can_be_left(model: Any) -> None:
    events = frtool.stream(PUZZLE, model=model, algorithm="best-of-n", options={"n": 4}, seed=3)
    kinds = []
    for event in events:
        kinds.append(type(event))
        if isinstance(event, NodeAdded):
            break
    events.close()  # type: ignore[attr-defined]
    assert kinds[0] is RunStarted
    assert Ended not in kinds
    with pytest.raises(StopIteration):
        next(events)


def test_many_prompts_give_the_trees_of_lone_searches(model: Any) -> None:
    prompts = [PUZZLE, "Use 3 7 25 50 to reach 372", "no puzzle", "Make 24 from 1, 2, 3, 4"]
    taken: list[str] = []

    def source() -> Iterator[str]:
        for prompt in prompts:
            taken.append(prompt)
            yield prompt

    settings: Settings = {"model": model, "algorithm": "mcts", "budget": frtool.Budget(steps=24), "batch": 20}
    results = {}
    for result in frtool.search_many(source(), **settings):
        assert result.question is not None
        results[result.question.prompt] = result
    assert set(results) == set(prompts) == set(taken)
    failed = results.pop("no puzzle")
    assert isinstance(failed.error, UsageError)
    assert (failed.answer, failed.reason[:6]) == (None, "failed")
    for prompt, result in results.items():
        alone = frtool.search(prompt, **settings)
        assert (alone.answer, alone.steps, alone.score) == (result.answer, result.steps, result.score)
        assert [(n.id, n.text, n.logprob, n.visits) for n in alone.tree.walk()] == [
            (n.id, n.text, n.logprob, n.visits) for n in result.tree.walk()
        ]


@pytest.mark.parametrize("steps", [48, None])
def test_the_default_beam_comes_to_its_end_within_the_budget(model: Any, steps: int | None) -> None:
    prompts = [PUZZLE, "Use 2 5 9 14 37 8 to reach 411"]
    budget = frtool.Budget(steps=steps)
    widths = set()
    for result in frtool.search_many(prompts, model=model, budget=budget):
        assert result.reason == "finished"
        assert result.usage.terminals
        widths.add(result.config["algorithm_options"]["width"])
    assert len(widths) == 2  # a longer puzzle leaves less to each line


def test_the_pool_goes_with_its_search(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from frtool.engine.forest import Forest

    pools: list[Any] = []
    begin = Forest.__init__

    def remember(self: Forest, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        pools.append(weakref.ref(self.allocator))

    monkeypatch.setattr(Forest, "__init__", remember)
    settings: Settings = {"model": model, "algorithm": "best-of-n", "options": {"n": 1}}
    gc.disable()  # it would come by too late for a GPU's memory
    try:
        found = frtool.search(PUZZLE, **settings)
        for _ in frtool.stream(PUZZLE, **settings):
            break
        results = list(frtool.search_many([PUZZLE, "no puzzle"], **settings))
        assert [pool() for pool in pools] == [None, None, None]
    finally:
        gc.enable()
    assert found.answer
    assert len(results) == 2


class Constant:
    name = "constant"

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def score(self, nodes: Sequence[Node], steps: Sequence[Step], tree: SearchTree) -> list[float]:
        return [self.value] * len(nodes)


class Never:
    name = "never"

    def verify(self, answer: str) -> bool:
        return False


def test_own_objects_stand_in_the_configuration(model: Any) -> None:
    found = frtool.search(PUZZLE, model=model, algorithm=Greedy(), scorer=Constant(), verifier=Never())
    assert [found.config[name] for name in ("algorithm", "scorer", "verify")] == ["greedy", "constant", "never"]
    assert (found.score, found.verified) == (0.5, False)
    (result,) = frtool.search_many([PUZZLE], model=model, algorithm=Greedy, scorer=Constant(), verifier=Never())
    assert (result.answer, result.score, result.verified) == (found.answer, 0.5, False)


def test_an_own_scorers_mistake_is_raised_or_stands_in_the_result(model: Any) -> None:
    with pytest.raises(ValueError, match="constant gave node"):
        frtool.search(PUZZLE, model=model, algorithm="greedy", scorer=Constant(7.0))
    (result,) = frtool.search_many([PUZZLE], model=model, algorithm="greedy", scorer=Constant(7.0))
    assert isinstance(result.error, FrtoolError)
    assert "constant gave node" in result.error.message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"widht": 4}, "no setting `widht`"),
        ({"algorithm": "magic"}, "unknown algorithm"),
        ({"algorithm": "greedy", "options": {"width": 4}}, "does not use the option"),
        ({"options": {"width": "wide"}}, "width must be a number"),
        ({"algorithm": Greedy(), "options": {"n": 4}}, "for an algorithm that is named"),
        ({"algorithm": 3}, "without `ask`"),
        ({"scorer": object()}, "without name and score"),
        ({"scorer": Constant(), "reward_model": "x"}, "two scorers"),
        ({"verifier": Never(), "expected": "24"}, "two verifiers"),
        ({"verifier": "none", "steer": True}, "--steer needs a verifier"),
        ({"budget": 48}, "budget is of type int"),
        ({"seed": "one"}, "seed is of type str"),
        ({"steer": 1}, "steer is of type int"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"max_depth": 0}, "--max-depth"),
        ({"delimiter": ""}, "--delimiter"),
    ],
)
def test_a_call_that_cannot_work_is_refused_before_a_model_loads(
    settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frtool.models.load.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    for call in (frtool.search, frtool.stream, lambda prompt, **given: frtool.search_many([prompt], **given)):
        with pytest.raises(UsageError, match=said):
            call(PUZZLE, **settings)


@pytest.mark.parametrize("prompt", [7, None, "", " ", "\ud800", PUZZLE + "\ud800", "no puzzle"])
def test_a_prompt_that_cannot_work_is_refused(prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frtool.models.load.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError):
        frtool.search(prompt)


def test_every_setting_of_a_search_can_be_given() -> None:
    keywords = set(get_type_hints(Settings, localns={"LoadedModel": object}))
    fields = set(inspect.signature(SearchConfig).parameters)
    elsewhere = {"prompt", "algorithm_options", "verify", "tokens", "nodes", "steps", "seconds", "kv_bytes"}
    assert keywords - fields == {"options", "budget", "verifier", "task"}
    assert fields - keywords == elsewhere


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="allows nothing"):
        frtool.Budget(steps=0)
