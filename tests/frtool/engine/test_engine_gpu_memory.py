"""A GPU whose memory is full, in earnest: torch's own allocator refuses what the engine asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from frtool.engine import Engine, EngineOptions, Forest, Root
from frtool.models.load import LoadedModel
from frtool.scoring import LogprobScorer
from frtool.search.budget import Budget
from frtool.search.events import Ended, Event, NodeAdded
from frtool.search.protocols import OutOfMemory
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BLOCKS = 256
MIB = 1 << 20
MODES = {
    "eager": {"pipeline": False},
    "pipelined": {"pipeline": True, "capture": False},
    "captured": {"pipeline": True, "capture": True},
}
LARGE_ONLY = 16 * MIB
"""Left free, this serves tensors of up to 1 MiB, and none of 1 to 10 MiB: torch takes 20 MiB for the first of those."""


class Text:
    def answer(self, text: str) -> str | None:
        return text

    def key(self, text: str) -> str:
        return text


class Hoard:
    """All that this process may have of the device's memory, but for `spare` bytes."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []
        self.refused = 0
        """How often torch had refused memory when it was full."""

    def fill(self, spare: int = 0) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._allow(torch.cuda.memory_reserved())
        size, least = 1 << 30, MIB + 512 if spare else 512
        while size >= least:
            try:
                self.held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size = max(size // 2, least) if size > least else 0
        self._allow(torch.cuda.memory_reserved() + spare)
        self.refused = refusals()

    def release(self) -> None:
        self.held.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)

    @staticmethod
    def _allow(count: int) -> None:
        torch.cuda.set_per_process_memory_fraction(min(count / torch.cuda.mem_get_info()[1], 1.0))


@pytest.fixture
def hoard() -> Iterator[Hoard]:
    hoard = Hoard()
    yield hoard
    hoard.release()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def loaded(loaded_model: Callable[..., LoadedModel]) -> LoadedModel:
    """64 rows of its widest activations take 4 MiB, 8 rows half of one."""
    return loaded_model(
        device="cuda", dtype=torch.bfloat16, hidden_size=256, head_dim=64, intermediate_size=32768, sharpness=0.05,
        max_positions=1024,
    )  # fmt: skip


def options(**changes: Any) -> EngineOptions:
    chosen = {"delimiter": "e", "max_step_tokens": 12, "num_blocks": BLOCKS, "batch": 64}
    return EngineOptions(**{**chosen, **changes})


def make_engine(loaded: LoadedModel, **changes: Any) -> Engine:
    return Engine(loaded, loaded.tokenizer("make 24 from 4 5 6 10\n")["input_ids"], options(**changes))


def run(engine: Engine, at: int = 0, then: Callable[[], None] = lambda: None) -> list[Event]:
    """The events of a search of 160 steps; `then` is called when `at` nodes are there."""
    waits = True
    events = []
    for event in run_search(
        algorithm=make_algorithm("best-of-n", {"n": 128}), generator=engine, scorer=LogprobScorer(), task=Text(),
        budget=Budget(steps=160), max_depth=4,
    ):  # fmt: skip
        events.append(event)
        if waits and nodes(events) >= at:
            waits = False
            then()
    assert isinstance(events[-1], Ended)
    return events


def nodes(events: list[Event]) -> int:
    return sum(isinstance(event, NodeAdded) for event in events)


def refusals() -> int:
    return int(torch.cuda.memory_stats()["num_ooms"])


def check_clean(engine: Engine) -> None:
    engine.allocator.check()
    assert list(engine.holdings.kept) == ["0"]
    engine.release("0")
    engine.allocator.check()
    assert engine.allocator.free_blocks == BLOCKS


def test_a_prompt_that_finds_no_memory_leaves_nothing_behind_and_is_read_later(
    loaded: LoadedModel, hoard: Hoard
) -> None:
    prompt = loaded.tokenizer("make 24 from 4 5 6 10\n" * 20)["input_ids"]
    forest = Forest(loaded, options(), len(prompt))
    hoard.fill()
    with pytest.raises(OutOfMemory, match=r"finds no memory on the device: CUDA out of memory"):
        Root(forest, prompt)
    assert not forest.roots
    forest.allocator.check()
    assert forest.allocator.free_blocks == BLOCKS
    hoard.release()
    assert Root(forest, prompt).trunk.length == len(prompt)


def test_a_prompt_is_read_in_shorter_chunks_where_long_ones_find_no_memory(loaded: LoadedModel, hoard: Hoard) -> None:
    prompt = loaded.tokenizer("make 24 from 4 5 6 10\n" * 20)["input_ids"]
    forest = Forest(loaded, options(), len(prompt))
    whole = Root(forest, prompt)
    expected = whole.trunk.logits
    whole.close()
    seen: list[int] = []
    forest.on_prefill = seen.append
    hoard.fill(LARGE_ONLY)
    root = Root(forest, prompt)
    assert refusals() > hoard.refused
    assert len(seen) > 1
    assert seen[-1] == len(prompt)
    assert torch.cosine_similarity(root.trunk.logits.float(), expected.float(), dim=0) > 0.99


def test_a_command_whose_prompt_finds_no_memory_says_so_in_one_line(
    loaded: LoadedModel, hoard: Hoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from frtool.cli.app import run as frtool
    from frtool.engine import forest

    def make_pipeline(planted: Forest) -> Any:
        pipeline = forest_pipeline(planted)
        hoard.fill()
        return pipeline

    forest_pipeline = forest.make_pipeline
    monkeypatch.setattr("frtool.models.load.load_model", lambda *arguments, **options: loaded)
    monkeypatch.setattr(forest, "make_pipeline", make_pipeline)
    assert frtool(["search", "-q", "--kv-memory", "64MB", "Make 24 from 4, 5, 6, 10"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: out of memory: a prompt of ")
    assert "hint: " in err
    assert err.count("\n") <= 4


@pytest.mark.parametrize("mode", MODES)
def test_a_full_device_ends_the_search_with_what_there_is(loaded: LoadedModel, hoard: Hoard, mode: str) -> None:
    """Or with all of it, where the memory that its own nodes give up serves it step by step."""
    engine = make_engine(loaded, **MODES[mode])
    events = run(engine, 4, hoard.fill)
    assert refusals() > hoard.refused
    assert nodes(events) >= 4
    assert events[-1].reason == "memory" or nodes(events) == 160
    hoard.release()
    assert nodes(run(engine)) == 160
    check_clean(engine)


@pytest.mark.parametrize("mode", MODES)
def test_a_device_without_memory_for_large_passes_takes_smaller_ones(
    loaded: LoadedModel, hoard: Hoard, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    engine = make_engine(loaded, **MODES[mode])
    halved: list[int] = []
    halve = engine.forest.halve

    def counted(error: torch.OutOfMemoryError) -> None:
        halved.append(len(engine.forest.rows))
        halve(error)

    monkeypatch.setattr(engine.forest, "halve", counted)
    events = run(engine, 0, lambda: hoard.fill(LARGE_ONLY))
    assert halved
    assert halved[0] > 8
    assert halved == sorted(halved, reverse=True)
    assert events[-1].reason != "memory"
    assert nodes(events) == 160
    check_clean(engine)
