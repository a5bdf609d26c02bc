"""What the engine generates is what the model says, path by path."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from frtool.models.load import LoadedModel

Drive = Callable[..., Any]


def test_greedy_equals_generate(loaded_model: Callable[..., LoadedModel], drive: Drive) -> None:
    for seed in range(3):
        loaded = loaded_model(seed=seed)
        driver = drive(loaded, greedy=True, max_step_tokens=12, delimiter="e")
        name, text = "0", ""
        while len(text) < 40:
            driver.submit(name, 0)
            driver.finish()
            name += ".0"
            text += driver.steps[name].text
            if driver.steps[name].finish != "step":
                break
        ids = driver.path_ids(name)
        loaded.model.set_attn_implementation("eager")
        suppress = [loaded.reward_tokens.query, loaded.reward_tokens.good, loaded.reward_tokens.bad]
        prompt = torch.tensor([driver.prompt_ids])
        wanted = loaded.model.generate(
            prompt, max_new_tokens=len(ids) - prompt.shape[1], do_sample=False, suppress_tokens=suppress
        )[0].tolist()
        loaded.model.set_attn_implementation("frtool_tree")
        assert ids == wanted
        assert text == loaded.tokenizer.decode(ids[len(driver.prompt_ids) :], skip_special_tokens=True)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_every_path_has_the_logprobs_of_an_independent_pass(tiny: LoadedModel, drive: Drive, block_size: int) -> None:
    driver = drive(tiny, block_size=block_size, delimiter="e", prefill_chunk=5)
    steps = driver.grow(width=4, depth=3)
    assert sum(step.parent.count(".") == 2 for step in steps.values()) > 8
    for name, step in steps.items():
        ids = driver.path_ids(name)
        own = len(driver.engine.holdings.kept[name].tokens)
        logprobs = torch.log_softmax(driver.plain_logits(ids), -1)
        start = len(ids) - own
        total = sum(logprobs[start + i - 1, ids[start + i]].item() for i in range(own))
        if step.tokens > own:
            total += logprobs[-1, tiny.tokenizer.eos_token_id].item()
        assert step.logprob == pytest.approx(total, abs=1e-3)
        assert step.text == tiny.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_children_start_from_the_logits_after_the_parents_last_token(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, delimiter="e")
    for name, step in driver.grow(width=4, depth=2).items():
        if step.finish == "step":
            wanted = driver.plain_logits(driver.path_ids(name))[-1]
            assert (driver.engine.holdings.kept[name].logits - wanted).abs().max() < 1e-4


def test_rewards_are_those_of_a_plain_pass_with_the_query_behind_the_path(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, delimiter="e", read_rewards=True)
    steps = driver.grow(width=6, depth=2)
    marks = tiny.reward_tokens
    for name, step in steps.items():
        last = driver.plain_logits([*driver.path_ids(name), marks.query])[-1]
        wanted = torch.softmax(last[[marks.good, marks.bad]], 0)[0].item()
        assert step.reward == pytest.approx(wanted, abs=1e-5)
    assert {step.finish for step in steps.values()} == {"step", "end", "length"}
    assert driver.engine.scorer_tokens == len(steps)


def test_reading_rewards_changes_no_step(tiny: LoadedModel, drive: Drive) -> None:
    grown = [drive(tiny, delimiter="e", read_rewards=reads).grow(width=4, depth=3) for reads in (False, True)]
    bare = [{name: (s.text, s.logprob, s.finish) for name, s in steps.items()} for steps in grown]
    assert bare[0] == bare[1]
    assert all(step.reward is None for step in grown[0].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_steps_have_the_same_bits_at_every_capacity(
    loaded_model: Callable[..., LoadedModel], drive: Drive, dtype: torch.dtype, options: dict[str, float]
) -> None:
    loaded = loaded_model(dtype=dtype)
    trees = [
        drive(loaded, batch=batch, delimiter="e", read_rewards=True, **options).grow(width=6, depth=2)
        for batch in (1, 4, 16)
    ]
    assert len(trees[0]) > 10
    assert trees[0] == trees[1] == trees[2]


def test_steps_do_not_depend_on_what_else_is_generated(tiny: LoadedModel, drive: Drive) -> None:
    together = drive(tiny, delimiter="e", read_rewards=True)
    together.grow(width=5, depth=2)
    alone = drive(tiny, delimiter="e", read_rewards=True)
    name = next(name for name, s in together.steps.items() if s.parent == "0" and s.finish == "step")
    alone.submit("0", int(name[2:]))
    alone.finish()
    alone.submit(name, 3)
    alone.finish()
    assert alone.steps.items() <= together.steps.items()


def test_seeds_and_ordinals_give_other_steps(tiny: LoadedModel, drive: Drive) -> None:
    texts = []
    for seed in (0, 1):
        driver = drive(tiny, seed=seed)
        driver.submit("0", *range(8))
        driver.finish()
        texts += [step.text for step in driver.steps.values()]
    assert len(set(texts)) == 16


def test_steps_join_and_leave_without_waiting_for_each_other(tiny: LoadedModel, drive: Drive) -> None:
    driver = drive(tiny, batch=2, delimiter="e")
    driver.submit("0", *range(6))
    order = []
    while driver.engine.outstanding:
        order += [step.ordinal for step in driver.poll()]
        assert len(driver.engine.forest.rows) <= 2
    assert sorted(order) == list(range(6))
    lengths = {}
    for step in driver.engine.holdings.done.values():
        lengths[step.ordinal] = step.sampled
    assert any(lengths[a] > lengths[b] for a, b in pairwise(range(6)))
    assert order != sorted(order)
