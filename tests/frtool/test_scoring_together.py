"""The reward model's passes that several searches share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from frtool.config import SearchConfig
from frtool.models.load import load_model
from frtool.models.reward import load_reward_model
from frtool.scoring.preset import RewardPreset, parse_preset
from frtool.scoring.reward_model import RewardModelScorer
from frtool.scoring.reward_pool import RewardPool
from frtool.search.events import Ended, NodeAdded
from frtool.search.protocols import OutOfMemory, Step
from frtool.search.tree import Node, SearchTree
from frtool.session import Session
from frtool.solving.many import Many
from frtool.solving.question import Question

QUESTIONS = ["What is 3 + 4 * 2?", "How much is 2 + 2?", "What is left of 9 after 3 and 4 are gone?"]
LAYERS = [["First, 4 * 2 = 8.\n\n", "It is + 14 -\n\n"], ["So 3 + 8 = 11.\n\n", "Thus + 12\n\n"], ["11\n\n", "?\n\n"]]
PRESET = (
    'prompt = "{question}\\n\\n"\nlayout = "text"\nread_at = "tag"\nstep_tag = " #"\ngood_token = "+"\n'
    'bad_token = "-"\nhead = "lm"\n'
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(byte_model: Path) -> Path:
    (byte_model / "preset.toml").write_text(PRESET)
    return byte_model


@pytest.fixture(scope="module")
def preset() -> RewardPreset:
    import tomllib

    return parse_preset("mine", tomllib.loads(PRESET))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return load_reward_model(str(folder), head_tensors="", classes=0, dtype="fp32")


class Grown:
    """A tree that gains a level at a time: first `ask`, then `score`."""

    def __init__(self, scorer: RewardModelScorer) -> None:
        self.scorer, self.tree = scorer, SearchTree()
        self.level: list[Node] = [self.tree.root]
        self.values: list[float] = []

    def ask(self, texts: list[str]) -> None:
        self.fresh = []
        for parent in self.level:
            for text in texts:
                step = Step(parent.id, self.tree.want(parent).ordinal, text, 5, -1.0, "step")
                self.fresh.append(self.tree.make(step)[0])
        self.scorer.ask(self.fresh, self.tree)

    def score(self) -> None:
        self.values += self.scorer.score(self.fresh, [], self.tree)
        for node in self.fresh:
            self.tree.attach(node)
        self.level = self.fresh


def test_scorers_that_ask_before_the_pool_answers_share_its_passes(loaded: Any, preset: RewardPreset) -> None:
    alone = []
    for question in QUESTIONS:
        scorer = RewardModelScorer(loaded, preset, question, num_blocks=600, block_size=4)
        grown = Grown(scorer)
        for layer in LAYERS:
            grown.ask(layer)
            grown.score()
        alone.append((grown.values, scorer.tokens))
    pool = RewardPool(loaded, num_blocks=1800, block_size=4)
    together = [Grown(RewardModelScorer(loaded, preset, question, pool=pool)) for question in QUESTIONS]
    for layer in LAYERS:
        for grown in together:
            grown.ask(layer)
        pool.answer()
        for grown in together:
            grown.score()
        pool.allocator.check()
    assert [(grown.values, grown.scorer.tokens) for grown in together] == alone
    assert pool.passes == 1 + len(LAYERS)  # the questions, then a pass a level
    for grown in together:
        grown.scorer.clear()
    assert pool.allocator.free_blocks == pool.allocator.num_blocks


def test_a_path_that_cannot_be_read_fails_its_own_search_alone(loaded: Any, preset: RewardPreset) -> None:
    pool = RewardPool(loaded, num_blocks=40, block_size=4)
    first, second = (Grown(RewardModelScorer(loaded, preset, question, pool=pool)) for question in QUESTIONS[:2])
    first.ask(["1 + 1 = 2, " * 20])
    second.ask(["1 + 1 = 2"])
    pool.answer()
    with pytest.raises(OutOfMemory, match="more KV blocks"):
        first.score()
    second.score()
    assert 0 < second.values[0] < 1
    for grown in (first, second):
        grown.scorer.clear()
    pool.allocator.check()
    assert pool.allocator.free_blocks == 40


def test_a_device_without_memory_for_a_shared_pass_reads_less_at_once(
    loaded: Any, preset: RewardPreset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = RewardPool(loaded, num_blocks=600, block_size=4)
    together = [Grown(RewardModelScorer(loaded, preset, question, pool=pool)) for question in QUESTIONS]
    forward = pool.batch.forward

    def small(branches: Any, counts: Any, tokens: Any, rows: Any) -> Any:
        if len(branches) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(branches, counts, tokens, rows)

    monkeypatch.setattr(pool.batch, "forward", small)
    for grown in together:
        grown.ask(LAYERS[0])
    pool.answer()
    for grown in together:
        grown.score()
        assert len(grown.values) == 2
    assert pool.passes >= 5
    pool.allocator.check()


def config_of(folder: Path, **changes: Any) -> SearchConfig:
    settings = {
        "prompt": QUESTIONS[0], "algorithm": "beam", "delimiter": "e", "max_step_tokens": 8, "max_depth": 4,
        "steps": 24, "batch": 16, "model": str(folder), "reward_model": str(folder),
        "reward_preset": str(folder / "preset.toml"), "dtype": "float32",
    }  # fmt: skip
    return SearchConfig(**(settings | changes))


def outcome(events: list[Any]) -> Any:
    last = events[-1]
    assert isinstance(last, Ended)
    nodes = {event.id: (event.text, event.reward) for event in events if isinstance(event, NodeAdded)}
    return nodes, last.reason, last.best, last.scorer_tokens


@pytest.mark.parametrize("algorithm", ["beam", "mcts", "best-of-n"])
def test_problems_that_share_passes_get_the_trees_of_lone_searches(folder: Path, algorithm: str) -> None:
    loaded = load_model(str(folder), dtype="float32")
    config = config_of(folder, algorithm=algorithm, batch=64)
    alone, passes = [], 0
    for question in QUESTIONS:
        session = Session.open(config_of(folder, algorithm=algorithm, prompt=question), loaded=loaded)
        alone.append(outcome(list(session.run())))
        assert isinstance(session.scorer, RewardModelScorer)
        passes += session.scorer._pool.passes
    many = Many.open(config, loaded=loaded)
    events: dict[str, list[Any]] = {question: [] for question in QUESTIONS}
    for attempt, event in many.run(map(Question, QUESTIONS)):
        events[attempt.question.prompt].append(event)
    assert [outcome(events[question]) for question in QUESTIONS] == alone
    assert many._pool is not None
    assert many._pool.passes < 0.8 * passes
    assert many._pool.allocator.free_blocks == many._pool.allocator.num_blocks
