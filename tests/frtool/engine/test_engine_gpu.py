"""The same engine on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from frtool.engine import EngineOptions, Forest, Root
from frtool.models.load import LoadedModel
from frtool.search.protocols import Expand

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

Drive = Callable[..., Any]


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16], ids=str)
def loaded(request: pytest.FixtureRequest, loaded_model: Callable[..., LoadedModel]) -> LoadedModel:
    return loaded_model(
        device="cuda", dtype=request.param, hidden_size=256, num_attention_heads=4, head_dim=64, sharpness=0.05
    )


def test_paths_and_rewards_are_those_of_a_plain_pass(loaded: LoadedModel, drive: Drive) -> None:
    driver = drive(loaded, delimiter="e", read_rewards=True, block_size=None)
    steps = driver.grow(width=6, depth=3)
    marks = loaded.reward_tokens
    assert len(steps) >= 12
    for name, step in steps.items():
        ids = driver.path_ids(name)
        logits = driver.plain_logits([*ids, marks.query])
        logprobs = torch.log_softmax(logits, -1)
        own = len(driver.engine.holdings.kept[name].tokens)
        total = sum(logprobs[i - 1, ids[i]].item() for i in range(len(ids) - own, len(ids)))
        if step.tokens > own:
            total += logprobs[len(ids) - 1, loaded.tokenizer.eos_token_id].item()
        assert step.logprob == pytest.approx(total, abs=0.03 * step.tokens)
        reward = torch.softmax(logits[-1, [marks.good, marks.bad]], 0)[0].item()
        assert step.reward == pytest.approx(reward, abs=0.02)


def test_the_same_search_twice_gives_the_same_bits(loaded: LoadedModel, drive: Drive) -> None:
    trees = [drive(loaded, delimiter="e", read_rewards=True).grow(width=4, depth=3) for _ in range(2)]
    assert trees[0] == trees[1]


def test_a_full_pool_leaves_nothing_behind(loaded: LoadedModel, drive: Drive) -> None:
    driver = drive(loaded, delimiter="e", read_rewards=True, num_blocks=16, prompt="make 24 from 1 2\n")
    driver.grow(width=6, depth=3)
    driver.release_all()
    assert driver.engine.allocator.free_blocks == 16


@pytest.fixture(scope="module")
def endless(loaded: LoadedModel) -> LoadedModel:
    return replace(loaded, eos_ids=frozenset())


@pytest.fixture(scope="module")
def delimiter(endless: LoadedModel) -> str:
    """What most of this random model's steps hold, so that they have children however its weights were drawn."""
    prompt = endless.tokenizer("make 24 from 1 2\n")["input_ids"]
    root = Root(Forest(endless, EngineOptions(max_step_tokens=24, num_blocks=256, block_size=8)), prompt)
    for ordinal in range(32):
        root.submit(Expand("0", ordinal))
    held: Counter[str] = Counter()
    while root.outstanding:
        root.forest.poll()
        for step in root.poll():
            held.update(set(step.text))
    return held.most_common(1)[0][0]


def test_kv_that_comes_back_from_host_memory_is_what_left(endless: LoadedModel, drive: Drive, delimiter: str) -> None:
    driver = drive(endless, delimiter=delimiter, prompt="make 24 from 1 2\n", swap_space=1 << 30)
    driver.grow(width=4, depth=2)
    engine = driver.engine
    allocator, kept = engine.allocator, engine.holdings.kept

    def values(name: str) -> torch.Tensor:
        return allocator.read_slots(allocator.slots(kept[name].branch_id))

    deep = [name for name, step in driver.steps.items() if name.count(".") == 2 and step.finish == "step"]
    deep = deep[:4]  # fewer than the batch has rows
    assert deep
    before = {name: values(name) for name in deep}
    assert engine.forest.evict(allocator.num_blocks)
    assert all(kept[name].branch_id is None for name in deep)
    for name in deep:
        driver.submit(name, 0)
    driver.poll()  # its pass overwrites blocks that were freed a moment ago
    assert all(values(name).equal(before[name]) for name in deep)
    assert engine.kv().recomputed_tokens == 0
    assert engine.kv().restored_tokens > 0


@pytest.mark.parametrize("pipeline", [False, True])
def test_a_search_whose_kv_goes_to_host_memory_ends_clean(
    endless: LoadedModel, drive: Drive, delimiter: str, pipeline: bool
) -> None:
    options = {"prompt": "make 24 from 1 2\n", "delimiter": delimiter, "read_rewards": True, "pipeline": pipeline}
    driver = drive(endless, num_blocks=16, swap_space=1 << 30, **options)
    steps = driver.grow(width=6, depth=3)
    assert len(steps) >= 12
    assert driver.engine.kv().restored_tokens > 0
    driver.release_all()
    assert driver.engine.allocator.free_blocks == 16
    assert driver.engine.forest.swap.used == 0
