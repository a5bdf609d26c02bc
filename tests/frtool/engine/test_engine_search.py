"""Whole searches over the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from frtool.engine import EngineOptions, Forest, Root
from frtool.models.load import LoadedModel
from frtool.scoring import LogprobScorer, StepRewardScorer
from frtool.search.budget import Budget
from frtool.search.events import Ended, NodeAdded, to_record
from frtool.search.protocols import Expand
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search


class Text:
    """The answer is the whole text."""

    def answer(self, text: str) -> str | None:
        return text

    def key(self, text: str) -> str:
        return text


def search(driver: Any, algorithm: str, reads: bool, **options: Any) -> tuple[list[dict[str, Any]], Ended]:
    """All nodes, by id because the order of independent chains is free, and the last event."""
    events = list(
        run_search(
            algorithm=make_algorithm(algorithm, options),
            generator=driver.engine,
            scorer=StepRewardScorer() if reads else LogprobScorer(),
            task=Text(),
            budget=Budget(nodes=60),
            max_depth=4,
        )
    )
    last = events[-1]
    assert isinstance(last, Ended)
    nodes = [to_record(replace(event, poll=0)) for event in events if isinstance(event, NodeAdded)]
    return sorted(nodes, key=lambda node: str(node["id"])), last


@pytest.mark.parametrize("algorithm", ["greedy", "best-of-n", "beam", "mcts"])
@pytest.mark.parametrize("reads", [False, True])
def test_a_search_gives_the_same_tree_twice_and_leaves_the_pool_clean(
    tiny: LoadedModel, drive: Callable[..., Any], algorithm: str, reads: bool
) -> None:
    seen = []
    for blocks in (400, 14):  # the second has to evict and recompute
        driver = drive(
            tiny,
            delimiter="e",
            read_rewards=reads,
            num_blocks=blocks,
            prompt="make 24 \n",
            greedy=make_algorithm(algorithm).greedy,
        )
        nodes, last = search(driver, algorithm, reads)
        assert last.best is not None
        assert last.nodes == sum(node["duplicate_of"] is None for node in nodes)
        assert (last.scorer_tokens > 0) == reads
        assert driver.engine.outstanding == 0
        driver.engine.release("0")
        driver.engine.allocator.check()
        assert driver.engine.allocator.free_blocks == blocks
        seen.append((nodes, last.best, last.answer, last.reward))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("algorithm", ["best-of-n", "beam"])
def test_a_search_gives_the_same_tree_at_every_batch_size(
    loaded_model: Callable[..., LoadedModel], drive: Callable[..., Any], algorithm: str, four_bit: bool
) -> None:
    loaded = loaded_model(four_bit=four_bit)
    seen = []
    for batch in (1, 16):
        driver = drive(loaded, batch=batch, delimiter="e", read_rewards=True)
        nodes, last = search(driver, algorithm, reads=True)
        seen.append((nodes, last.best, last.answer, last.reward))
    assert seen[0] == seen[1]


def test_a_greedy_step_is_that_of_a_greedy_engine_among_sampled_ones(
    tiny: LoadedModel, drive: Callable[..., Any]
) -> None:
    wanted = drive(tiny, greedy=True)
    wanted.submit("0", 0)
    wanted.finish()
    for seed in (0, 1):
        driver = drive(tiny, seed=seed)
        for ordinal in range(4):
            driver.engine.submit(Expand("0", ordinal, greedy=ordinal == 2))
        driver.finish()
        greedy, sampled = driver.steps["0.2"], driver.steps["0.0"]
        assert (greedy.text, greedy.finish) == (wanted.steps["0.0"].text, wanted.steps["0.0"].finish)
        assert sampled.text != greedy.text


def test_the_bytes_of_a_tree_are_its_own_in_a_forest(tiny: LoadedModel) -> None:
    forest = Forest(tiny, EngineOptions(num_blocks=64, block_size=4, max_step_tokens=24))
    each = forest.allocator.block_bytes
    first = Root(forest, tiny.tokenizer("make 24")["input_ids"])
    alone = first.kv().bytes_used
    second = Root(forest, tiny.tokenizer("make 24 from 1 2 3")["input_ids"])
    shared = first.kv().bytes_used + second.kv().bytes_used - forest.allocator.stats().bytes_used
    assert first.kv().bytes_used == alone == 2 * each
    assert shared == each  # the block that both prompts begin with
