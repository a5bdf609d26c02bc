"""What the engine holds, frees and does when the pool is full."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from frtool.engine.swap import worth_a_copy
from frtool.models.load import LoadedModel
from frtool.search.protocols import OutOfMemory

Drive = Callable[..., Any]


def release_everything(driver: Any) -> None:
    driver.engine.cancel()
    for step in [*driver.engine.holdings.done.values()]:
        driver.engine.drop(driver.returned[step.parent.id, step.ordinal])
    for name in list(driver.engine.holdings.kept):
        driver.engine.release(name)
    driver.engine.allocator.check()


@pytest.mark.parametrize("reads", [False, True])
def test_nothing_leaks_whatever_is_kept_dropped_released_and_cancelled(
    tiny: LoadedModel, drive: Drive, reads: bool
) -> None:
    draw = random.Random(0)
    driver = drive(tiny, batch=4, delimiter="e", read_rewards=reads, num_blocks=200)
    engine, asked = driver.engine, {}
    driver.returned = {}
    for turn in range(150):
        open_nodes = [name for name, node in engine.holdings.kept.items() if node.logits is not None]
        for name in draw.choices(open_nodes, k=draw.randrange(3)):
            asked[name] = asked.get(name, -1) + 1
            driver.submit(name, asked[name])
        for step in driver.poll():
            driver.returned[step.parent, step.ordinal] = step
            draw.choice([engine.keep, engine.keep, engine.drop])(step)
        idle = [name for name in engine.holdings.kept if name != "0"]
        if idle and draw.random() < 0.2:
            engine.release(draw.choice(idle))
        if turn % 40 == 39:
            engine.cancel()
            assert engine.outstanding == 0
        engine.allocator.check()
    release_everything(driver)
    assert engine.allocator.free_blocks == 200


def test_children_share_the_prompt(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, prompt="a" * 160, batch=64, max_step_tokens=10, block_size=8)
    driver.submit("0", *range(64))
    driver.poll()
    kv = driver.engine.kv()
    assert kv.logical_tokens == 160 + 64 * 161
    assert kv.physical_tokens == 160 + 64
    assert kv.blocks_used == 20 + 64
    driver.finish()
    kv = driver.engine.kv()
    assert kv.unshared_peak_bytes > 8 * kv.peak_bytes


@pytest.mark.parametrize("prompt_tokens", [1000, 1003])
def test_64_branches_over_a_long_prompt_hold_little_more_than_the_distinct_tokens(
    loaded_model: Callable[..., LoadedModel], drive: Drive, prompt_tokens: int
) -> None:
    loaded = loaded_model(max_positions=2048, ends=False)
    options = {"batch": 64, "max_step_tokens": 24, "delimiter": "!", "block_size": None, "num_blocks": 1024}
    driver = drive(loaded, prompt="a" * prompt_tokens, **options)
    driver.submit("0", *range(64))
    for _ in range(20):
        assert driver.poll() == []
    private = sum(row.fed for row in driver.engine.forest.rows)
    kv = driver.engine.kv()
    assert private == 64 * 20
    assert kv.logical_tokens == 65 * prompt_tokens + private
    assert kv.physical_tokens <= 1.1 * (prompt_tokens + private)


def test_a_released_parent_leaves_its_children_what_they_share(tiny: LoadedModel, drive: Drive) -> None:
    whole = drive(tiny, delimiter="e")
    whole.grow(width=3, depth=3)
    driver = drive(tiny, delimiter="e")
    driver.grow(width=3, depth=2)
    for name in ["0", *(n for n in driver.steps if n.count(".") == 1)]:
        driver.engine.release(name)
    for name in [n for n, s in driver.steps.items() if n.count(".") == 2 and s.finish == "step"]:
        driver.submit(name, 0, 1, 2)
    driver.finish()
    assert driver.steps == whole.steps


def test_a_parent_may_be_released_while_its_children_wait_or_grow(tiny: LoadedModel, drive: Drive) -> None:
    whole = drive(tiny, delimiter="e")
    whole.submit("0", *range(6))
    whole.finish()
    driver = drive(tiny, delimiter="e", batch=2)
    driver.submit("0", *range(6))
    driver.poll()
    driver.engine.release("0")
    driver.finish()
    assert driver.steps == whole.steps


def grow_all(driver: Any) -> dict[str, Any]:
    """Three levels submitted as they come, so that many nodes are kept while others grow."""
    driver.submit("0", *range(6))
    while driver.engine.outstanding:
        for step in driver.poll():
            name = f"{step.parent}.{step.ordinal}"
            driver.steps[name] = step
            driver.engine.keep(step)
            if step.finish == "step" and name.count(".") < 4:
                driver.submit(name, *range(3))
    return driver.steps


@pytest.mark.parametrize("swap", [0, 8000, 1 << 30], ids=["recompute", "a little host memory", "host memory"])
@pytest.mark.parametrize("blocks", [12, 16, 24])
@pytest.mark.parametrize("reads", [False, True])
def test_a_full_pool_evicts_and_recomputes_and_changes_no_step(
    tiny: LoadedModel, drive: Drive, blocks: int, reads: bool, swap: int
) -> None:
    options = {"delimiter": "e", "prompt": "make 24 from 1 2\n", "read_rewards": reads, "max_step_tokens": 20}
    roomy = grow_all(drive(tiny, num_blocks=4000, **options))
    driver = drive(tiny, num_blocks=blocks, swap_space=swap, **options)
    tight = grow_all(driver)
    assert len(roomy) > 60
    assert tight == roomy
    kv = driver.engine.kv()
    assert kv.peak_blocks <= blocks
    assert (kv.restored_tokens > 0) == (swap > 0)
    assert 0 <= driver.engine.forest.swap.used <= swap
    driver.release_all()
    assert driver.engine.allocator.free_blocks == blocks
    assert driver.engine.forest.swap.used == 0


def test_sampled_tokens_are_counted_once_though_rows_are_put_back(tiny: LoadedModel, drive: Drive) -> None:
    options = {"delimiter": "!", "max_step_tokens": 40, "prompt": "a" * 16, "block_size": 4}
    counts = []
    for blocks in (400, 16):
        driver = drive(tiny, num_blocks=blocks, **options)
        driver.submit("0", *range(8))
        driver.finish()
        counts.append((driver.engine.policy_tokens, driver.steps))
    assert counts[0] == counts[1]


def test_kv_that_comes_back_is_what_left(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, delimiter="e", swap_space=1 << 30)
    driver.grow(width=3, depth=2)
    engine = driver.engine
    allocator, kept = engine.allocator, engine.holdings.kept

    def values(name: str) -> Any:
        return allocator.read_slots(allocator.slots(kept[name].branch_id))

    deep = [name for name, step in driver.steps.items() if name.count(".") == 2 and step.finish == "step"]
    before = {name: values(name) for name in deep}
    assert engine.forest.evict(allocator.num_blocks)
    assert all(kept[name].branch_id is None for name in deep)
    for name in deep:
        driver.submit(name, 0)
    driver.poll()
    for name in deep:
        assert values(name).equal(before[name])
    assert engine.kv().recomputed_tokens == 0


@pytest.mark.parametrize(
    ("parameters", "token_bytes", "least"),
    [  # Llama 3.1 8B and 3.2 1B in 16 bits, SmolLM2 135M, the embedded model
        (8_030_000_000, 131_072, 3),
        (1_236_000_000, 32_768, 21),
        (135_000_000, 23_040, None),
        (17_400_000, 3_584, None),
    ],
)
def test_a_copy_pays_for_large_models_and_not_for_a_few_tokens_of_small_ones(
    parameters: int, token_bytes: int, least: int | None
) -> None:
    worth = [tokens for tokens in range(1, 101) if worth_a_copy(parameters, token_bytes, tokens)]
    assert worth == ([] if least is None else list(range(least, 101)))


def dig(driver: Any) -> None:
    """Deeper and deeper, until the path no longer fits."""
    name = "0"
    for _ in range(60):
        driver.submit(name, 0, 1, 2)
        driver.finish()
        name = max((n for n, s in driver.steps.items() if s.finish == "step"), key=lambda n: n.count("."))


def test_a_path_that_cannot_fit_runs_out_of_memory(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, prompt="a" * 16, block_size=4, num_blocks=16, delimiter="0", max_step_tokens=40, seed=2)
    engine = driver.engine
    with pytest.raises(OutOfMemory, match=r"step 0(\.\d+)+ needs \d more KV blocks, 0 are free of 16"):
        dig(driver)
    engine.allocator.check()
    left = engine.outstanding
    assert 0 < left <= 3
    assert len(driver.steps) % 3 == (3 - left) % 3
    release_everything(driver)
    assert engine.allocator.free_blocks == 16


def test_steps_that_were_not_collected_may_be_evicted_too(tiny: LoadedModel, drive: Drive) -> None:
    options = {"prompt": "a" * 16, "block_size": 4, "delimiter": "e", "seed": 3}
    whole = drive(tiny, num_blocks=500, **options)
    whole.grow(width=12, depth=2)
    driver = drive(tiny, num_blocks=16, **options)
    driver.submit("0", *range(12))
    driver.finish(keep=False)
    for step in driver.steps.values():
        driver.engine.keep(step)
    for name in [n for n, s in driver.steps.items() if s.finish == "step"]:
        driver.submit(name, *range(12))
    driver.finish()
    assert driver.steps == whole.steps
