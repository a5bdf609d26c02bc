"""Steps that begin as they are told, and the intervals by which they can be told: sampling without replacement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from frtool.models.load import LoadedModel
from frtool.scoring import LogprobScorer
from frtool.search.budget import Budget
from frtool.search.events import NodeAdded, to_record
from frtool.search.lines import Lines
from frtool.search.protocols import Expand, Step
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search

Drive = Callable[..., Any]
Model = Callable[..., LoadedModel]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# After the prompt's line break: nine lines, two of them with an end token.
FOLLOWS = {
    "\n": {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05},
    "a": {"1": 0.7, "2": 0.2, "<eos>": 0.1},
    "b": {"3": 0.6, "4": 0.4},
    "c": {"5": 0.75, "<eos>": 0.25},
    "d": {"6": 0.5, "7": 0.5},
    **{digit: {".": 1.0} for digit in "1234567"},
}
LINES = {
    "a1.": 0.35, "a2.": 0.1, "a": 0.05, "b3.": 0.18, "b4.": 0.12, "c5.": 0.1125, "c": 0.0375,
    "d6.": 0.025, "d7.": 0.025,
}  # fmt: skip


class Text:
    def answer(self, text: str) -> str | None:
        return text

    def key(self, text: str) -> str:
        return text


def search(driver: Any, algorithm: str, nodes: int = 60, **options: Any) -> list[dict[str, Any]]:
    """All steps as they were told."""
    events = run_search(
        algorithm=make_algorithm(algorithm, options),
        generator=driver.engine,
        scorer=LogprobScorer(),
        task=Text(),
        budget=Budget(nodes=nodes),
        max_depth=3,
    )
    return [to_record(event) for event in events if isinstance(event, NodeAdded)]


def grow(driver: Any, *expands: Expand) -> dict[tuple[str, int], Step]:
    for expand in expands:
        driver.engine.submit(expand)
    steps = {}
    while driver.engine.outstanding:
        for step in driver.poll():
            driver.engine.drop(step)
            steps[step.parent, step.ordinal] = step
    return steps


@pytest.fixture
def lines_model(chain_model: Model) -> LoadedModel:
    return chain_model(FOLLOWS)


def test_an_edge_that_a_sum_in_pieces_lifts_past_one_is_one(
    lines_model: LoadedModel, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(lines_model, delimiter=".")
    forest = driver.engine.forest
    advance = forest.advance
    monkeypatch.setattr(
        forest, "advance", lambda row, token, logprob, low, high: advance(row, token, logprob, low, 1.0000001)
    )
    steps = grow(driver, Expand("0", 0, prefix=(), uniform=0.4))
    assert all(step.intervals and max(step.intervals) == 1.0 for step in steps.values())


@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipelined"])
def test_a_step_tells_where_its_tokens_lie_and_can_be_told_where_to_go(
    lines_model: LoadedModel, drive: Drive, pipeline: bool
) -> None:
    driver = drive(lines_model, prompt="\n", delimiter=".", pipeline=pipeline)
    known = lines_model.tokenizer.get_vocab()
    first = grow(driver, Expand("0", 0, uniform=0.6), Expand("0", 1, uniform=0.99), Expand("0", 2, greedy=True))
    assert first["0", 0].text[0] == "b"
    assert first["0", 0].intervals[:2] == pytest.approx((0.5, 0.8), abs=1e-6)
    assert first["0", 1].text[0] == "d"
    assert first["0", 1].intervals[:2] == pytest.approx((0.95, 1.0), abs=1e-6)
    assert first["0", 2].text == "a1."
    assert first["0", 2].intervals == ()
    again = grow(driver, Expand("0", 3, prefix=(known["b"],), uniform=0.99), Expand("0", 4, prefix=(known["d"],)))
    assert again["0", 3].text == "b4."
    assert again["0", 3].intervals == pytest.approx((0, 0, 0.6, 1, 0, 1), abs=1e-6)
    assert again["0", 3].logprob == pytest.approx(torch.tensor(0.12).log().item(), abs=1e-5)
    assert again["0", 4].text in ("d6.", "d7.")


@pytest.mark.parametrize(
    ("text", "limit", "grown", "finish"),
    [
        ("b3.b3.", 9, "b3.", "step"),
        ("b3.b3.", 2, "b3", "length"),
        ("c<eos>c5.", 9, "c", "end"),
        ("c5.", 9, "c5.", "step"),
    ],
)
@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipelined"])
def test_a_prefix_that_is_more_than_a_step_ends_where_the_step_does(
    lines_model: LoadedModel, drive: Drive, text: str, limit: int, grown: str, finish: str, pipeline: bool
) -> None:
    driver = drive(lines_model, prompt="\n", delimiter=".", max_step_tokens=limit, pipeline=pipeline)
    engine, prefix = driver.engine, tuple(lines_model.tokenizer(text, add_special_tokens=False)["input_ids"])
    engine.submit(Expand("0", 0, prefix=prefix, uniform=0.5))
    engine.submit(Expand("0", 1, uniform=0.6))
    steps = []
    while engine.outstanding:
        steps += driver.poll()
    by_ordinal = {step.ordinal: step for step in steps}
    assert (by_ordinal[0].text, by_ordinal[0].finish) == (grown, finish)
    assert by_ordinal[0].tokens == len(by_ordinal[0].ids) + (finish == "end")
    for step in steps:
        engine.keep(step)
    for node in engine.holdings.kept.values():
        if node.branch_id is not None and node.logits is not None:
            assert engine.allocator.length(node.branch_id) == node.length
    engine.allocator.check()


@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipelined"])
def test_a_prefix_goes_into_kv_at_once(tiny: LoadedModel, drive: Drive, pipeline: bool) -> None:
    driver = drive(tiny, delimiter="\n", max_step_tokens=24, pipeline=pipeline)
    driver.finish()
    polls = []
    prefix = tuple(tiny.tokenizer("6*5=30 (6 30 and more", add_special_tokens=False)["input_ids"])
    for ordinal, known in enumerate(((), prefix)):
        driver.submit("0", ordinal, prefix=known)
        polls.append(0)
        while driver.engine.outstanding:
            polls[-1] += 1
            for step in driver.poll():
                driver.engine.drop(step)
    assert step.ids[: len(prefix)] == prefix
    assert polls[1] < step.tokens - len(prefix) + 5


def test_an_end_token_has_its_interval_too(lines_model: LoadedModel, drive: Drive) -> None:
    driver = drive(lines_model, prompt="\n", delimiter=".")
    known = lines_model.tokenizer.get_vocab()  # the end token comes first in it
    step = grow(driver, Expand("0", 0, prefix=(known["a"],), uniform=0.05))["0", 0]
    assert (step.text, step.finish, step.tokens) == ("a", "end", 2)
    assert step.intervals[2:] == pytest.approx((0.0, 0.1), abs=1e-6)


def test_steps_that_are_told_nothing_are_the_same_as_ever(tiny: LoadedModel, drive: Drive) -> None:
    """The noise of a step is that of its place, whether or not its siblings were told where to go."""
    plain = grow(drive(tiny, delimiter="e"), *(Expand("0", i) for i in range(6)))
    mixed = grow(drive(tiny, delimiter="e"), *(Expand("0", i, uniform=0.3 if i % 2 else None) for i in range(6)))
    assert all(plain["0", i] == mixed["0", i] for i in range(0, 6, 2))


def test_the_second_line_follows_what_the_first_leaves(lines_model: LoadedModel, drive: Drive) -> None:
    count = 1500
    driver = drive(lines_model, prompt="\n", delimiter=".", batch=256, num_blocks=2048)
    tries = [Lines(seed, "0") for seed in range(count)]
    drawn = []
    for rank in range(2):
        steps = grow(driver, *(Expand("0", 2 * i + rank, False, *lines.draw(2 * i + rank))
                               for i, lines in enumerate(tries)))  # fmt: skip
        drawn.append([steps["0", 2 * i + rank].text for i in range(count)])
        assert all(lines.add(steps["0", 2 * i + rank]) for i, lines in enumerate(tries))
    for found, wanted in (
        (Counter(drawn[0]), LINES),
        (Counter(b for a, b in zip(*drawn, strict=True) if a == "a1."), {t: p for t, p in LINES.items() if t != "a1."}),
    ):
        total, mass = sum(found.values()), sum(wanted.values())
        assert set(found) <= set(wanted)
        chi_square = sum((found[t] - total * p / mass) ** 2 / (total * p / mass) for t, p in wanted.items())
        assert chi_square < 31.9  # 8 degrees of freedom, p = 1e-4


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, set(LINES)),
        ({"temperature": 0.6}, set(LINES)),
        ({"temperature": 1.6}, set(LINES)),
        ({"top_k": 2}, {"a1.", "a2.", "b3.", "b4."}),
        ({"top_p": 0.79}, {"a1.", "a2.", "b3.", "b4."}),
        ({"min_p": 0.25}, {"a1.", "a2.", "b3.", "b4.", "c5.", "c"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipelined"])
def test_every_line_that_can_be_sampled_comes_once(
    lines_model: LoadedModel, drive: Drive, options: dict[str, float], lines: set[str], pipeline: bool
) -> None:
    driver = drive(lines_model, prompt="\n", delimiter=".", pipeline=pipeline, **options)
    steps = [node for node in search(driver, "best-first", expand=50) if node["id"].count(".") == 1]
    assert sorted(step["text"] for step in steps) == sorted(lines)
    assert not any(step["duplicate_of"] for step in steps)


@pytest.mark.parametrize("algorithm", ["beam", "mcts"])
def test_the_tree_depends_on_neither_batch_nor_pipeline(tiny: LoadedModel, drive: Drive, algorithm: str) -> None:
    seen = []
    for batch, pipeline in ((1, False), (5, False), (5, True)):
        driver = drive(tiny, delimiter="e", batch=batch, pipeline=pipeline, max_step_tokens=5, temperature=0.5)
        seen.append([{**node, "poll": 0} for node in search(driver, algorithm, nodes=30)])
    assert all(other == seen[0] for other in seen)
    assert any(node["intervals"][:2] == [0.0, 0.0] for node in seen[0]), "a prefix was walked again"


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("algorithm", ["beam", "mcts"])
def test_captured_passes_walk_a_prefix_again_and_leave_it(loaded_model: Model, drive: Drive, algorithm: str) -> None:
    loaded = loaded_model(
        device="cuda", dtype=torch.bfloat16, hidden_size=256, num_attention_heads=4, head_dim=64, sharpness=0.05
    )
    driver = drive(loaded, delimiter="e", num_blocks=700, block_size=16, batch=24, temperature=0.3)
    nodes = search(driver, algorithm, nodes=150)
    assert driver.engine.forest.passes.mode == "captured"
    assert any(node["intervals"][:2] == [0.0, 0.0] for node in nodes)
    repeats = sum(node["duplicate_of"] is not None for node in nodes)
    assert repeats <= len(nodes) // 20  # where a pass of another size rounds otherwise
