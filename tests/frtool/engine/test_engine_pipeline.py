"""One pass in flight while the last is read, in buffers that never move: the same steps as one pass at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from frtool.engine.fixed_step import FixedStep
from frtool.errors import FrtoolError
from frtool.models.load import LoadedModel
from frtool.search.protocols import OutOfMemory, Step

Drive = Callable[..., Any]
Model = Callable[..., LoadedModel]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def wander(
    driver: Any, polls: int, seed: int = 0, most: int = 12, watch: Callable[[int], None] = lambda _: None
) -> list[Step]:
    """Submit, keep, drop, release and cancel at random for so many polls; all finished steps, as they came. Some are
    told to begin as others did, or with all of these and more."""
    rng = random.Random(seed)
    engine, seen = driver.engine, []
    ordinals: dict[str, int] = {}
    alive = ["0"]
    for poll in range(polls):
        while engine.outstanding < most and rng.random() < 0.8:
            parent = rng.choice(alive[:1] + alive[-20:])
            ordinals[parent] = ordinals.get(parent, -1) + 1
            known = rng.choice(seen[-20:]).ids + rng.choice(seen[-20:]).ids if seen and rng.random() < 0.3 else ()
            driver.submit(parent, ordinals[parent], prefix=known[: rng.randint(0, len(known))])
        for step in sorted(engine.poll(), key=lambda step: (step.parent, step.ordinal)):
            seen.append(step)
            name = f"{step.parent}.{step.ordinal}"
            if rng.random() < 0.8:
                engine.keep(step)
                if step.finish == "step" and step.parent in alive:
                    alive.append(name)
                else:
                    engine.release(name)
            else:
                engine.drop(step)
        busy = {row.parent.id for row in engine.open.values()}
        while len(alive) > 30:
            place = rng.randrange(1, len(alive))
            if alive[place] in busy:
                break
            engine.release(alive.pop(place))
        if rng.random() < 0.002:
            engine.cancel()
        if poll % 50 == 0:
            engine.allocator.check()
        watch(poll)
    engine.cancel()
    for name in alive:
        engine.release(name)
    engine.allocator.check()
    assert engine.allocator.free_blocks == engine.allocator.num_blocks
    return seen


@pytest.mark.parametrize("blocks", [512, 20])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("greedy", [False, True])
def test_steps_are_those_of_one_pass_at_a_time(
    tiny: LoadedModel, drive: Drive, reads: bool, blocks: int, greedy: bool
) -> None:
    grown = []
    for pipeline in (False, True):
        driver = drive(
            tiny, prompt="make 24 \n", delimiter="e", read_rewards=reads, num_blocks=blocks, greedy=greedy, batch=7,
            pipeline=pipeline,
        )  # fmt: skip
        steps = driver.grow(width=4, depth=2)
        driver.release_all()
        assert driver.engine.allocator.free_blocks == blocks
        grown.append((steps, driver.engine.policy_tokens, driver.engine.scorer_tokens))
    assert len(grown[0][0]) > 10
    assert grown[0] == grown[1]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_dropped_or_cancelled_leaves_nothing_behind(tiny: LoadedModel, drive: Drive, seed: int) -> None:
    driver = drive(
        tiny, delimiter="e", read_rewards=seed % 2 == 0, num_blocks=40 if seed < 3 else 400, batch=(1, 5, 12)[seed % 3],
        pipeline=True,
    )  # fmt: skip
    assert wander(driver, 80, seed)


def test_a_pass_wider_than_every_buffer_reads_the_same(tiny: LoadedModel, drive: Drive) -> None:
    """Rows whose path was evicted bring all of it at once."""
    seen = []
    for pipeline in (False, True):
        driver = drive(tiny, delimiter="e", num_blocks=60, block_size=4, pipeline=pipeline, max_step_tokens=40)
        driver.grow(width=3, depth=2)
        holdings = driver.engine.holdings
        for node in holdings.kept.values():
            if node.parent is not None:
                holdings.unbind(node)
        leaves = [name for name, step in driver.steps.items() if step.finish == "step"]
        for name in leaves:
            driver.submit(name, 7, 8)
        driver.finish(keep=False)
        seen.append(driver.steps)
    assert seen[0] == seen[1]


def test_nan_logits_name_their_step(loaded_model: Model, drive: Drive) -> None:
    loaded = loaded_model()
    driver = drive(loaded, delimiter="e", pipeline=True)
    driver.submit("0", 0, 1)
    driver.poll()
    loaded.model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(FrtoolError, match=r"NaN logits at step 0\.0, after \d+ tokens"):
        driver.finish()


def test_a_pool_for_not_even_one_step_says_so(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, prompt="make 24 \n", num_blocks=6, block_size=4, max_step_tokens=8, pipeline=True)
    driver.engine.allocator.alloc_branch(12)  # somebody else's
    driver.submit("0", 0)
    with pytest.raises(OutOfMemory, match=r"step 0\.0 needs 1 more KV blocks, 0 are free of 6"):
        driver.finish()


def test_sizes_that_come_up_seldom_are_padded_to_one_that_is_there(
    tiny: LoadedModel, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Noted(FixedStep):
        def __init__(self, loaded: Any, allocator: Any, options: Any, outbox: Any, capacity: int, *rest: Any) -> None:
            made.append(capacity)
            super().__init__(loaded, allocator, options, outbox, capacity, *rest)

    monkeypatch.setattr("frtool.engine.capture.FixedStep", Noted)
    driver = drive(tiny, delimiter="e", batch=40, num_blocks=900, max_step_tokens=12, pipeline=True)
    driver.submit("0", *range(40))
    driver.finish(keep=False)  # fewer and fewer
    assert made == [64]
    for ordinal in range(100, 106):
        driver.submit("0", ordinal)
        driver.finish(keep=False)
    assert made == [64, 8]


@pytest.mark.parametrize("polls", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_steps_of_a_long_walk_are_those_of_a_plain_engine(tiny: LoadedModel, drive: Drive, polls: int) -> None:
    walked = drive(tiny, delimiter="e", num_blocks=150, batch=24, pipeline=True)
    seen = {f"{step.parent}.{step.ordinal}": step for step in wander(walked, polls, seed=1, most=30)}
    assert len(seen) > polls // 10
    plain = drive(tiny, delimiter="e", num_blocks=400, batch=1, pipeline=False)
    for name in random.Random(0).sample(sorted(seen), 12):
        places = name.split(".")
        for depth in range(1, len(places)):
            parent, ordinal = ".".join(places[:depth]), int(places[depth])
            if f"{parent}.{ordinal}" not in plain.steps:
                plain.engine.submit(walked.asked[f"{parent}.{ordinal}"])
                plain.finish()
            assert plain.steps[f"{parent}.{ordinal}"] == seen[f"{parent}.{ordinal}"]


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("polls", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_captured_passes_draw_what_the_same_passes_draw_uncaptured(
    loaded_model: Model, drive: Drive, polls: int
) -> None:
    loaded = loaded_model(
        device="cuda", dtype=torch.bfloat16, hidden_size=256, num_attention_heads=4, head_dim=64, sharpness=0.05
    )
    seen = []
    for capture in (False, True):
        driver = drive(loaded, delimiter="e", num_blocks=700, block_size=16, batch=24, capture=capture)
        passes = driver.engine.forest.passes
        assert passes is not None
        reserved: list[int] = []

        def watch(poll: int, reserved: list[int] = reserved) -> None:
            if poll in (polls // 2, polls - 1):
                torch.cuda.synchronize()
                reserved.append(torch.cuda.memory_reserved())

        seen.append(wander(driver, polls, seed=1, most=30, watch=watch))
        assert reserved[1] <= reserved[0] + (4 << 20)
        if capture:
            assert passes.mode == "captured"
            assert 0 < passes.recorded < 5 * len(passes.sizes)
        else:
            assert passes.mode.startswith("eager")
    assert len(seen[0]) > polls // 10
    assert seen[0] == seen[1]
