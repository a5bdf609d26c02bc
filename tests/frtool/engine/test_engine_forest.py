"""Several prompts in one pool and one batch."""

from __future__ import annotations

import itertools
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
from frtool.search.protocols import Expand, OutOfMemory
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
        root = Root(forest, forest.loaded.tokenizer(prompt)["input_ids"], seed, read_later=True)

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


class Counted:
    """Calls through, and keeps how many tokens of how many branches each pass had."""

    def __init__(self, forest: Forest, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[int, int]] = []
        forward = forest.batch.forward

        def counted(branches: Any, counts: Any, tokens: Any, rows: Any) -> Any:
            self.passes.append((len(branches), len(tokens)))
            return forward(branches, counts, tokens, rows)

        monkeypatch.setattr(forest.batch, "forward", counted)


@pytest.mark.parametrize("chunk", [512, 40, 7])
@pytest.mark.parametrize("size", [4, 8])
def test_prompts_that_wait_are_read_together_to_the_same_bits(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch, chunk: int, size: int
) -> None:
    forest = Forest(tiny, options("beam", prefill_chunk=chunk, block_size=size))
    counted = Counted(forest, monkeypatch)
    start = list(range(6, 38))
    prompts = [
        [*start, 40, 41],
        [9, 8, 7],
        [*start, 40, 42, 43, 44, 45, 46, 47, 48, 49],  # shares whole blocks with the first, which are read besides
        [*start[:13], 50],
        [*start, 40, 42, 43, 44, 45, 46, 47, 48, 49],  # is all of another
        [9, 8, 7, 6, 5, 4],
        [9],
    ]
    roots = [Root(forest, prompt, read_later=True) for prompt in prompts]
    assert counted.passes == []
    forest.poll()
    for root, prompt in zip(roots, prompts, strict=True):
        alone = Engine(tiny, prompt, options("beam"))
        assert (root.trunk.logits == alone.trunk.logits).all()
        held, wanted = ((at, at.slots(branch)) for at, branch in (
            (forest.allocator, root.trunk.branch_id), (alone.allocator, alone.trunk.branch_id)
        ))  # fmt: skip
        assert held[0].read_slots(held[1]).equal(wanted[0].read_slots(wanted[1]))
    read = sum(tokens for _, tokens in counted.passes)
    assert read < sum(map(len, prompts)) - 32  # of the three that begin alike one is read whole
    assert len(counted.passes) == -(-read // chunk)
    for root in roots:
        root.close()
    forest.allocator.check()
    assert forest.allocator.free_blocks == forest.allocator.num_blocks


def test_a_prompt_that_cannot_be_read_fails_alone(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forest = Forest(tiny, options("beam"))
    forward, calls = forest.batch.forward, itertools.count()

    def poisoned(branches: Any, counts: Any, tokens: Any, rows: Any) -> Any:
        logits = forward(branches, counts, tokens, rows)
        if next(calls) == 0:
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(forest.batch, "forward", poisoned)
    problems = [(prompt, 0) for prompt in PROMPTS[:3]]
    events: dict[int, list[Any]] = {}
    for place, event in run_forest(forest, [planted(forest, "beam", *problem) for problem in problems]):
        events.setdefault(place, []).append(event)
    assert events[1][-1].reason == "failed: FrtoolError: the model gave NaN logits at the prompt"
    for place in (0, 2):
        assert outcome(events[place]) == lone(tiny, "beam", *problems[place])
    assert forest.allocator.free_blocks == forest.allocator.num_blocks


def test_a_root_that_leaves_before_its_prompt_is_read_leaves_nothing(tiny: LoadedModel) -> None:
    forest = Forest(tiny, options("beam"))
    leaving, staying = (Root(forest, [7, 8, 9], read_later=True) for _ in range(2))
    leaving.submit(Expand("0", 0))
    leaving.close()
    forest.poll()
    assert staying.trunk.logits is not None
    staying.close()
    assert forest.allocator.free_blocks == forest.allocator.num_blocks
    assert not forest.waiting


def test_prompts_that_wait_are_promised_their_blocks(tiny: LoadedModel) -> None:
    forest = Forest(tiny, options("beam", num_blocks=12))
    Root(forest, [7] * 30, read_later=True)
    Root(forest, [8] * 30, read_later=True)
    with pytest.raises(OutOfMemory, match="a prompt of 30 tokens needs 5 KV blocks, 2 are free"):
        Root(forest, [9] * 30, read_later=True)
    forest.poll()
    assert all(root.trunk.logits is not None for root in forest.roots)
    with pytest.raises(OutOfMemory, match="a prompt of 30 tokens needs 5 KV blocks, 4 are free"):
        Root(forest, [9] * 30)
    assert len(forest.roots) == 2


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
                loaded.model.model.embed_tokens.weight.fill_(float("nan"))
            if isinstance(event, Ended):
                ends.append(event.reason)

    with pytest.raises(FrtoolError, match="NaN"):
        run()
    assert len(ends) == 2
    assert all(reason.startswith("failed: FrtoolError") for reason in ends)
    assert forest.allocator.free_blocks == forest.allocator.num_blocks
