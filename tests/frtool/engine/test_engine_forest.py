"""Several prompts in one pool and one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from frtool.engine import Engine, EngineOptions, Forest, Root
from frtool.errors import FrtoolError, UsageError
from frtool.models.load import LoadedModel
from frtool.scoring import StepRewardScorer
from frtool.search.budget import Budget
from frtool.search.events import Ended, NodeAdded, to_record
from frtool.search.forest import run_forest
from frtool.search.protocols import Expand
from frtool.search.registry import make_algorithm
from frtool.search.run import pausing_search, run_search

PROMPTS = ["make 24 from 4 5 6 10\n", "make 24 from 1 2 3\n", "reach 100\n", "make 24 from 9 9\n", "a\n"]
Model = Callable[..., LoadedModel]


class Text:
    def answer(self, text: str) -> str | None:
        return text

    def key(self, text: str) -> str:
        return text


def options(algorithm: str, **changes: Any) -> EngineOptions:
    settings = {"delimiter": "e", "max_step_tokens": 24, "num_blocks": 800, "block_size": 8, "batch": 8} | changes
    return EngineOptions(read_rewards=True, greedy=make_algorithm(algorithm).greedy, **settings)


def search_settings(algorithm: str) -> dict[str, Any]:
    return {
        # Chains that do not look at each other stop wherever the budget finds them, so let them end.
        "algorithm": make_algorithm(algorithm, {"n": 6} if algorithm == "best-of-n" else {}),
        "scorer": StepRewardScorer(),
        "task": Text(),
        "budget": Budget(steps=24),
        "max_depth": 4,
    }


def outcome(events: list[Any]) -> tuple[Any, ...]:
    """The nodes by id and what was chosen."""
    last = events[-1]
    assert isinstance(last, Ended)
    nodes = [to_record(replace(event, poll=0)) for event in events if isinstance(event, NodeAdded)]
    counts = (last.policy_tokens, last.scorer_tokens, last.prompt_tokens, last.nodes, last.terminals)
    return sorted(nodes, key=lambda node: str(node["id"])), last.reason, last.best, last.answer, last.reward, counts


def lone(loaded: LoadedModel, algorithm: str, prompt: str, seed: int) -> tuple[Any, ...]:
    engine = Engine(loaded, loaded.tokenizer(prompt)["input_ids"], options(algorithm, seed=seed))
    return outcome(list(run_search(generator=engine, **search_settings(algorithm))))


def planted(forest: Forest, algorithm: str, prompt: str, seed: int) -> Callable[[], Any]:
    def start() -> Any:
        root = Root(forest, forest.loaded.tokenizer(prompt)["input_ids"], seed)

        def run() -> Any:
            try:
                yield from pausing_search(generator=root, **search_settings(algorithm))
            finally:
                root.close()

        return run()

    return start


def together(forest: Forest, algorithm: str, problems: list[tuple[str, int]]) -> list[tuple[Any, ...]]:
    events: dict[int, list[Any]] = {}
    starts = [planted(forest, algorithm, prompt, seed) for prompt, seed in problems]
    for place, event in run_forest(forest, starts):
        events.setdefault(place, []).append(event)
    return [outcome(events[place]) for place in range(len(problems))]


@pytest.mark.parametrize("algorithm", ["greedy", "best-of-n", "beam", "mcts"])
@pytest.mark.parametrize("blocks", [800, 40])
def test_each_tree_of_a_forest_is_the_tree_of_a_lone_search(tiny: LoadedModel, algorithm: str, blocks: int) -> None:
    problems = [(prompt, seed) for seed in (0, 1) for prompt in PROMPTS[seed :: 2 if blocks == 800 else 3]]
    forest = Forest(tiny, options(algorithm, num_blocks=blocks, batch=24))
    found = together(forest, algorithm, problems)
    assert found == [lone(tiny, algorithm, *problem) for problem in problems]
    assert forest.outstanding == 0
    assert forest.roots == []
    assert forest.allocator.free_blocks == blocks
    forest.allocator.check()


def test_a_failing_problem_does_not_stop_the_others(tiny: LoadedModel) -> None:
    forest = Forest(tiny, options("beam"))

    def broken() -> Any:
        raise UsageError("no such puzzle")

    def breaks_later() -> Any:
        root = Root(forest, [7, 8, 9])
        search = pausing_search(generator=root, **search_settings("beam") | {"scorer": Wrong()})
        return search

    class Wrong:
        name = "wrong"

        def score(self, nodes: Any, steps: Any, tree: Any) -> list[float]:
            return [2.0] * len(nodes)

    good = planted(forest, "beam", PROMPTS[0], 3)
    events = list(run_forest(forest, [broken, breaks_later, good]))
    ends = {place: event for place, event in events if isinstance(event, Ended)}
    assert ends[0].reason == "failed: UsageError: no such puzzle"
    assert ends[1].reason.startswith("failed: BadReward: wrong gave node")
    assert outcome([event for place, event in events if place == 2]) == lone(tiny, "beam", PROMPTS[0], 3)


def test_prompts_that_begin_alike_share_their_keys_and_values(tiny: LoadedModel) -> None:
    forest = Forest(tiny, options("beam"))
    start = list(range(6, 38))
    roots = [Root(forest, [*start, last]) for last in (40, 41, 42)]
    stats = forest.allocator.stats()
    assert stats.logical_tokens == 3 * 33
    assert stats.physical_tokens == 32 + 3
    alone = Engine(tiny, [*start, 41], options("beam"))
    assert (roots[1].trunk.logits == alone.trunk.logits).all()
    for root in roots:
        root.close()
    forest.allocator.check()
    assert forest.allocator.free_blocks == forest.allocator.num_blocks


def test_a_root_that_leaves_takes_nothing_from_the_others(tiny: LoadedModel) -> None:
    forest = Forest(tiny, options("beam", batch=8))
    leaving, staying = (Root(forest, tiny.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS[:2])
    for ordinal in range(6):  # more than the batch holds
        leaving.submit(Expand("0", ordinal))
        staying.submit(Expand("0", ordinal))
    for _ in range(3):
        forest.poll()
    leaving.close()
    steps = []
    while staying.outstanding:
        forest.poll()
        steps += staying.poll()
    alone = Engine(tiny, tiny.tokenizer(PROMPTS[1])["input_ids"], options("beam"))
    for ordinal in range(6):
        alone.submit(Expand("0", ordinal))
    wanted = []
    while alone.outstanding:
        wanted += alone.poll()
    assert sorted(steps, key=lambda step: step.ordinal) == sorted(wanted, key=lambda step: step.ordinal)
    staying.close()
    forest.allocator.check()
    assert forest.allocator.free_blocks == forest.allocator.num_blocks


def test_a_prompt_that_the_pool_cannot_hold_is_refused_by_itself(tiny: LoadedModel) -> None:
    forest = Forest(tiny, options("beam", num_blocks=12))
    with pytest.raises(UsageError, match="too small"):
        Root(forest, [7] * 200)
    with pytest.raises(UsageError, match="no tokens"):
        Root(forest, [])
    assert forest.allocator.free_blocks == 12
    Root(forest, [7] * 20)


def test_an_error_of_the_model_ends_every_search_and_is_raised(loaded_model: Model) -> None:
    loaded = loaded_model()
    forest = Forest(loaded, options("beam"))
    starts = [planted(forest, "beam", prompt, 0) for prompt in PROMPTS[:2]]
    ends = []

    def run() -> None:
        for _, event in run_forest(forest, starts):
            if isinstance(event, NodeAdded):
                loaded.model.lm_head.weight.fill_(float("nan"))
            if isinstance(event, Ended):
                ends.append(event.reason)

    with pytest.raises(FrtoolError, match="NaN"):
        run()
    assert len(ends) == 2
    assert all(reason.startswith("failed: FrtoolError") for reason in ends)
    assert forest.allocator.free_blocks == forest.allocator.num_blocks
