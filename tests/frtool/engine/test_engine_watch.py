"""What can be seen of the engine while it works."""

from __future__ import annotations

from typing import Any

from frtool.engine import Engine, EngineOptions
from frtool.models.load import LoadedModel
from frtool.search.watch import Watchable


def test_growing_steps_show_the_beginning_of_what_they_become(tiny: LoadedModel, drive: Any) -> None:
    driver = drive(tiny, delimiter="e")
    assert isinstance(driver.engine, Watchable)
    driver.submit("0", *range(6))
    seen: dict[str, list[str]] = {}
    while driver.engine.outstanding:
        for name, text in driver.engine.growing():
            seen.setdefault(name, []).append(text)
        for step in driver.engine.poll():
            driver.steps[f"{step.parent}.{step.ordinal}"] = step
    assert len(seen) > 1
    for name, texts in seen.items():
        assert all(text and driver.steps[name].text.startswith(text) for text in texts)
        assert [len(text) for text in texts] == sorted(len(text) for text in texts)
    assert list(driver.engine.growing()) == []


def test_half_a_character_is_not_shown(drive: Any, loaded_model: Any, byte_tokenizer: Any) -> None:
    driver = drive(loaded_model(tokenizer=byte_tokenizer()), prompt="abc", max_step_tokens=40)
    driver.submit("0", *range(4))
    while driver.engine.outstanding:
        assert not any(text.endswith("\ufffd") for _, text in driver.engine.growing())
        driver.engine.poll()


def test_evicted_nodes_are_named_once(tiny: LoadedModel, drive: Any) -> None:
    driver = drive(tiny, delimiter="e", prompt="make 24 from 1 2\n", max_step_tokens=20, num_blocks=24)
    driver.grow(width=6, depth=3)
    evicted = driver.engine.take_evicted()
    assert evicted
    assert set(evicted) <= set(driver.steps)
    assert driver.engine.take_evicted() == []


def test_reading_a_long_prompt_tells_how_far_it_is(tiny: LoadedModel) -> None:
    told: list[int] = []
    options = EngineOptions(delimiter="\n", max_step_tokens=8, prefill_chunk=16)
    engine = Engine(tiny, tiny.tokenizer("a" * 40)["input_ids"], options, on_prefill=told.append)
    assert told == [16, 32, engine.prompt_tokens]
