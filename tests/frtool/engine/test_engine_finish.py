"""How steps finish: delimiter, end token, limits; and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from frtool.errors import FrtoolError, UsageError
from frtool.models.load import LoadedModel
from frtool.search.protocols import Expand

Drive = Callable[..., Any]
Chain = Callable[..., LoadedModel]
END = "<eos>"
# A line of "ab", then mostly another one.
LINES = {"\n": {"a": 1.0}, "a": {"b": 1.0}, "b": {"\n": 1.0}, "<prm>": {"<+>": 0.75, "<->": 0.25}}


def one(driver: Any, parent: str = "0", ordinal: int = 0) -> Any:
    driver.submit(parent, ordinal)
    driver.finish()
    return driver.steps[f"{parent}.{ordinal}"]


def test_a_delimiter_ends_the_step_and_belongs_to_it(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES), prompt="\n")
    step = one(driver)
    assert (step.text, step.tokens, step.finish, step.reward) == ("ab\n", 3, "step", None)
    assert one(driver, "0.0").text == "ab\n"
    assert driver.engine.policy_tokens == 6
    assert driver.engine.scorer_tokens == 0
    assert driver.engine.prompt_tokens == 1


def test_the_end_token_ends_the_path_and_is_no_text(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES | {"b": {END: 1.0}}), prompt="\n")
    step = one(driver)
    assert (step.text, step.tokens, step.finish) == ("ab", 3, "end")
    with pytest.raises(ValueError, match="ended"):
        driver.submit("0.0", 0)


@pytest.mark.parametrize(("probability", "finish"), [(0.6, "end"), (0.4, "step")])
def test_a_probable_end_after_the_delimiter_ends_the_path_without_an_empty_step(
    chain_model: Chain, drive: Drive, probability: float, finish: str
) -> None:
    model = chain_model(LINES | {"\n": {END: probability, "a": 1 - probability}})
    driver = drive(model, prompt="a", read_rewards=True)
    step = one(driver)
    assert (step.text, step.tokens, step.finish) == ("b\n", 2, finish)
    assert step.logprob == pytest.approx(0.0, abs=1e-6)
    assert step.reward == pytest.approx(0.75)


def test_an_end_right_after_the_parent_is_an_empty_step_with_the_parents_reward(
    chain_model: Chain, drive: Drive
) -> None:
    model = chain_model(LINES | {"\n": {END: 0.4, "a": 0.6}})
    driver = drive(model, prompt="a", read_rewards=True)
    assert one(driver).finish == "step"
    driver.submit("0.0", *range(30))
    driver.finish()
    ends = [step for step in driver.steps.values() if step.finish == "end" and step.parent == "0.0"]
    assert 0 < len(ends) < 30
    for step in ends:
        if step.text == "":
            assert step.tokens == 1
            assert step.logprob == pytest.approx(torch.tensor(0.4).log().item())
            assert step.reward == pytest.approx(0.75)
    assert any(step.text == "" for step in ends)


def test_an_end_without_rewards_takes_no_forward_pass(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES | {"\n": {END: 1.0}}), prompt="\n")
    driver.submit("0", 0)
    (step,) = driver.poll()
    assert (step.text, step.finish, step.tokens) == ("", "end", 1)
    driver.engine.keep(step)
    assert driver.engine.outstanding == 0


def test_a_step_is_cut_at_its_limit(chain_model: Chain, drive: Drive) -> None:
    model = chain_model({"a": {"b": 1.0}, "b": {"a": 1.0}, "<prm>": {"<+>": 0.75, "<->": 0.25}})
    for reads in (False, True):
        step = one(drive(model, prompt="a", max_step_tokens=5, read_rewards=reads))
        assert (step.text, step.tokens, step.finish) == ("babab", 5, "length")
        assert step.reward == (pytest.approx(0.75) if reads else None)


def test_a_delimiter_at_the_limit_is_a_whole_step(chain_model: Chain, drive: Drive) -> None:
    assert one(drive(chain_model(LINES), prompt="\n", max_step_tokens=3)).finish == "step"


def test_a_path_is_cut_at_its_limit_even_after_a_delimiter(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES), prompt="\n", max_path_tokens=6)
    assert one(driver).finish == "step"
    step = one(driver, "0.0")
    assert (step.text, step.finish) == ("ab\n", "length")
    driver = drive(chain_model(LINES), prompt="\n", max_path_tokens=5)
    one(driver)
    assert one(driver, "0.0").text == "ab"


@pytest.mark.parametrize("reads", [False, True])
def test_a_path_stays_inside_the_models_positions(chain_model: Chain, drive: Drive, reads: bool) -> None:
    model = chain_model(LINES, max_positions=12)
    driver = drive(model, prompt="ababa", read_rewards=reads, delimiter="!")
    step = one(driver)
    assert step.finish == "length"
    assert 5 + step.tokens + reads == 12


def test_rewards_are_counted_one_token_a_step(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES), prompt="\n", read_rewards=True)
    driver.submit("0", *range(5))
    driver.finish()
    assert driver.engine.scorer_tokens == 5
    assert driver.engine.policy_tokens == 15
    assert all(step.reward == pytest.approx(0.75) for step in driver.steps.values())


def test_the_query_token_leaves_no_trace_in_the_pool(chain_model: Chain, drive: Drive) -> None:
    held = []
    for reads in (False, True):
        driver = drive(chain_model(LINES), prompt="\n", read_rewards=reads, block_size=4)
        driver.submit("0", *range(5))
        driver.finish()
        kv = driver.engine.kv()
        held.append((kv.blocks_used, kv.physical_tokens, kv.logical_tokens))
    assert held[0] == held[1]


def test_reward_tokens_are_never_sampled(loaded_model: Callable[..., LoadedModel], drive: Drive) -> None:
    loaded = loaded_model(sharpness=0.01)  # nearly uniform: three of 52 tokens
    driver = drive(loaded, batch=32, temperature=2.0)
    driver.submit("0", *range(64))
    driver.finish()
    marks = {loaded.reward_tokens.query, loaded.reward_tokens.good, loaded.reward_tokens.bad}
    assert not any(marks & set(driver.path_ids(name)) for name in driver.steps)


def test_nan_logits_are_an_error_that_names_the_step(chain_model: Chain, drive: Drive) -> None:
    model = chain_model(LINES)
    model.model.table[model.tokenizer.get_vocab()["b"]] = float("nan")
    driver = drive(model, prompt="\n", num_blocks=64)
    driver.submit("0", 3)
    with pytest.raises(FrtoolError, match=r"step 0\.3, after 2 tokens"):
        driver.finish()
    driver.engine.cancel()
    driver.engine.release("0")
    driver.engine.allocator.check()
    assert driver.engine.allocator.free_blocks == 64


def test_nan_logits_of_the_prompt_are_an_error(chain_model: Chain, drive: Drive) -> None:
    model = chain_model(LINES)
    model.model.table[model.tokenizer.get_vocab()["c"]] = float("nan")
    with pytest.raises(FrtoolError, match="NaN logits at the prompt"):
        drive(model, prompt="abc")


def test_a_nan_reward_is_an_error(chain_model: Chain, drive: Drive) -> None:
    model = chain_model(LINES)
    model.model.table[model.tokenizer.get_vocab()["<prm>"]] = float("nan")
    driver = drive(model, prompt="\n", read_rewards=True)
    driver.submit("0", 0)
    with pytest.raises(FrtoolError, match=r"step 0\.0"):
        driver.finish()


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(tiny: LoadedModel, drive: Drive) -> None:
    with pytest.raises(UsageError, match=r"300 tokens.*at most 256"):
        drive(tiny, prompt="a" * 300)
    with pytest.raises(UsageError, match=r"256 tokens.*at most 256"):
        drive(tiny, prompt="a" * 256)
    with pytest.raises(UsageError, match="no tokens"):
        drive(tiny, prompt="")


def test_a_pool_that_holds_no_step_is_refused_with_the_numbers(tiny: LoadedModel, drive: Drive) -> None:
    # 100 tokens take 13 blocks of 8; a step of 24 behind 4 shared tokens takes 4.
    with pytest.raises(UsageError, match=r"16 blocks .*100 tokens.*step of 24 need 17 blocks"):
        drive(tiny, prompt="a" * 100, num_blocks=16)
    drive(tiny, prompt="a" * 100, num_blocks=17)
    block = 2 * 2 * 8 * 2 * 16 * 4  # K and V, layers, tokens, heads, head_dim, bytes
    with pytest.raises(UsageError, match="16 blocks"):
        drive(tiny, prompt="a" * 100, num_blocks=None, kv_memory=17 * block - 1)
    drive(tiny, prompt="a" * 100, num_blocks=None, kv_memory=17 * block)


def test_rewards_need_a_model_that_has_them(tiny: LoadedModel, drive: Drive) -> None:
    with pytest.raises(UsageError, match="no process-reward tokens"):
        drive(replace(tiny, reward_tokens=None), read_rewards=True)


def test_wrong_use_is_refused(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES), prompt="\n")
    with pytest.raises(ValueError, match=r"0\.7 is not kept"):
        driver.submit("0.7", 0)
    driver.submit("0", 0)
    with pytest.raises(ValueError, match="before"):
        driver.submit("0", 0)
    with pytest.raises(ValueError, match="not kept"):
        driver.engine.release("0.0")
    driver.finish()
    with pytest.raises(ValueError, match="not finished"):
        driver.engine.keep(driver.steps["0.0"])
    driver.engine.release("0.0")
    with pytest.raises(ValueError, match="not kept"):
        driver.engine.submit(Expand("0.0", 0))


def test_an_idle_engine_polls_empty(chain_model: Chain, drive: Drive) -> None:
    driver = drive(chain_model(LINES), prompt="\n")
    assert driver.poll() == []
    assert driver.engine.outstanding == 0
