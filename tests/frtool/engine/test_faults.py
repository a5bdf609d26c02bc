"""Faults put where they may come from: each ends in a smaller search or one clear error, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frtool.engine import Engine, EngineOptions
from frtool.errors import FrtoolError
from frtool.kernels.allocator import OutOfBlocks
from frtool.scoring import LogprobScorer, StepRewardScorer
from frtool.search.budget import Budget
from frtool.search.events import Ended, Event, NodeAdded
from frtool.search.judge import BadReward
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search

SITES = ("append", "append_many")
"""Where the engine asks for blocks: a fork takes none, nor does an empty branch."""
ALGORITHMS = ("beam", "mcts", "best-of-n")


class Text:
    def answer(self, text: str) -> str | None:
        return text

    def key(self, text: str) -> str:
        return text


class Faulty:
    """Calls through to `function`, but for those whose number is in `at`; these raise what `fault` makes."""

    def __init__(self, function: Callable[..., Any], at: set[int], fault: Callable[[], BaseException]) -> None:
        self.function, self.at, self.fault = function, at, fault
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls in self.at:
            raise self.fault()
        return self.function(*arguments, **options)


def cuda_shortage() -> BaseException:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity …")


def make_engine(loaded: Any, **options: Any) -> Engine:
    chosen = {"delimiter": "e", "max_step_tokens": 12, "num_blocks": 200, "block_size": 4, "batch": 6, **options}
    prompt = loaded.tokenizer("make 24 \n")["input_ids"]
    return Engine(loaded, prompt, EngineOptions(**chosen))


def run(engine: Engine, algorithm: str = "beam", scorer: Any = None, **changes: Any) -> Iterator[Event]:
    settings = {"budget": Budget(steps=30), "max_depth": 4, "task": Text()} | changes
    if scorer is None:
        scorer = StepRewardScorer() if engine.options.read_rewards else LogprobScorer()
    # Independent samples, so that several grow at once from the beginning.
    chosen = make_algorithm(algorithm, {} if algorithm == "best-of-n" else {"distinct": False})
    return run_search(algorithm=chosen, generator=engine, scorer=scorer, **settings)


def tree(events: list[Event]) -> dict[str, str]:
    return {event.id: event.text for event in events if isinstance(event, NodeAdded)}


def check_clean(engine: Engine, blocks: int = 200) -> None:
    engine.allocator.check()
    assert list(engine.holdings.kept) == ["0"]
    assert not engine.holdings.done
    assert not engine.open
    engine.release("0")
    engine.allocator.check()
    assert engine.allocator.free_blocks == blocks


def collect(events: Iterator[Event]) -> tuple[list[Event], BaseException | None]:
    seen: list[Event] = []
    try:
        for event in events:
            seen.append(event)
    except BaseException as error:
        return seen, error
    return seen, None


@pytest.fixture(scope="module")
def undisturbed(tiny) -> Callable[..., list[Event]]:
    known: dict[Any, list[Event]] = {}

    def events(algorithm: str, reads: bool) -> list[Event]:
        if (algorithm, reads) not in known:
            known[algorithm, reads] = list(run(make_engine(tiny, read_rewards=reads), algorithm))
        return known[algorithm, reads]

    return events


@pytest.mark.parametrize("pipeline", [False, True], ids=["eager", "pipelined"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_blocks_that_run_out_at_any_call_end_in_a_smaller_search(
    tiny, undisturbed, monkeypatch, site, algorithm, pipeline
):
    engine = make_engine(tiny, read_rewards=True, pipeline=pipeline)
    counting = Faulty(getattr(engine.allocator, site), set(), lambda: OutOfBlocks(1, 0))
    monkeypatch.setattr(engine.allocator, site, counting)
    list(run(engine, algorithm))
    calls = counting.calls
    whole = tree(undisturbed(algorithm, True))
    for call in sorted({*range(1, min(calls, 6) + 1), *range(7, calls + 1, max(calls // 8, 1))}):
        engine = make_engine(tiny, read_rewards=True, pipeline=pipeline)
        real = getattr(engine.allocator, site)
        monkeypatch.setattr(engine.allocator, site, Faulty(real, {call}, lambda: OutOfBlocks(1, 0)))
        events, error = collect(run(engine, algorithm))
        assert error is None
        assert isinstance(events[-1], Ended)
        assert all(text == whole.get(name, text) for name, text in tree(events).items())
        check_clean(engine)


@pytest.mark.parametrize("pipeline", [False, True], ids=["eager", "pipelined"])
@pytest.mark.parametrize("reads", [False, True], ids=["plain", "rewards"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_device_without_memory_for_a_pass_takes_smaller_ones(
    tiny, undisturbed, monkeypatch, algorithm, reads, pipeline
):
    whole = tree(undisturbed(algorithm, reads))
    for at in ({2}, {3, 4}, {5, 9}):
        engine = make_engine(tiny, read_rewards=reads, pipeline=pipeline)
        for owner, name in ((engine.forest.batch, "forward"), (engine.forest.passes, "launch")):
            if owner is not None:
                monkeypatch.setattr(owner, name, Faulty(getattr(owner, name), at, cuda_shortage))
        events, error = collect(run(engine, algorithm))
        assert error is None
        assert len(tree(events)) == len(whole)
        # Which independent chains the budget of steps reaches depends on how many grow at once.
        assert algorithm == "best-of-n" or tree(events) == whole
        assert all(text == whole.get(name, text) for name, text in tree(events).items())
        check_clean(engine)


def test_a_device_without_memory_for_a_single_step_ends_the_search(tiny, undisturbed, monkeypatch):
    engine = make_engine(tiny)
    batch = engine.forest.batch
    monkeypatch.setattr(batch, "forward", Faulty(batch.forward, set(range(12, 999)), cuda_shortage))
    events, error = collect(run(engine))
    assert error is None
    assert events[-1].reason == "memory"
    assert tree(events).items() <= tree(undisturbed("beam", False)).items()
    check_clean(engine)


def test_a_prompt_without_memory_is_read_in_shorter_chunks(tiny, undisturbed, monkeypatch):
    from frtool.engine.batch import DecodeBatch

    faulty = Faulty(DecodeBatch.forward, {1, 2, 4}, cuda_shortage)
    monkeypatch.setattr(DecodeBatch, "forward", lambda self, *arguments: faulty(self, *arguments))
    engine = make_engine(tiny)
    assert faulty.calls > 5
    assert tree(list(run(engine))) == tree(undisturbed("beam", False))
    check_clean(engine)


@pytest.mark.parametrize("at", [1, 2, 9])
def test_a_device_without_memory_for_first_tokens_draws_fewer_at_once(tiny, undisturbed, monkeypatch, at):
    engine = make_engine(tiny, pipeline=True)
    passes = engine.forest.passes
    assert passes is not None
    monkeypatch.setattr(passes, "draw", Faulty(passes.draw, {at, at + 1}, cuda_shortage))
    events, error = collect(run(engine))
    assert error is None
    assert tree(events) == tree(undisturbed("beam", False))
    check_clean(engine)


@pytest.mark.parametrize("at", [1, 2, 9, 30])
def test_a_pipeline_without_memory_for_a_single_step_ends_with_what_there_is(tiny, undisturbed, monkeypatch, at):
    engine = make_engine(tiny, pipeline=True)
    passes = engine.forest.passes
    assert passes is not None
    monkeypatch.setattr(passes, "launch", Faulty(passes.launch, set(range(at, 999)), cuda_shortage))
    events, error = collect(run(engine))
    assert error is None
    assert events[-1].reason == "memory"
    assert tree(events).items() <= tree(undisturbed("beam", False)).items()
    check_clean(engine)


def test_a_device_without_memory_for_the_prompt_is_one_clear_line(tiny, monkeypatch, capsys):
    from frtool.cli.app import run as frtool

    monkeypatch.setattr("frtool.models.load.load_model", lambda *arguments, **options: tiny)
    monkeypatch.setattr("frtool.engine.batch.DecodeBatch.forward", Faulty(len, set(range(99)), cuda_shortage))
    assert frtool(["search", "-q", "Make 24 from 4, 5, 6, 10"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: out of memory: a prompt of 12 tokens finds no memory on the device: CUDA")
    assert "hint: " in err
    assert err.count("\n") <= 4


class Scorer:
    name = "scorer"

    def __init__(self, value: Callable[[], float], good: int = 3) -> None:
        self.value, self.good = value, good

    def score(self, nodes: Any, steps: Any, tree: Any) -> list[float]:
        self.good -= 1
        return [0.5 if self.good >= 0 else self.value() for _ in nodes]


def fail() -> float:
    raise FrtoolError("the scorer has lost its mind")


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        (fail, FrtoolError, "lost its mind"),
        (lambda: float("nan"), BadReward, "scorer gave node .* the reward nan"),
        (lambda: 7.0, BadReward, "scorer gave node .* the reward 7.0"),
    ],
    ids=["raises", "nan", "too large"],
)
def test_a_scorer_that_fails_ends_the_search_with_what_there_is(tiny, undisturbed, value, error, reason):
    engine = make_engine(tiny)
    events, raised = collect(run(engine, scorer=Scorer(value)))
    assert isinstance(raised, error)
    assert events[-1].reason.startswith(f"failed: {error.__name__}")
    assert len(tree(events)) > 0
    with pytest.raises(error, match=reason):
        raise raised
    check_clean(engine)


def test_a_scorer_that_hangs_can_be_interrupted(tiny):
    def hang() -> float:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(60)
        return 0.0

    engine = make_engine(tiny)
    events, raised = collect(run(engine, scorer=Scorer(hang)))
    assert isinstance(raised, KeyboardInterrupt)
    assert events[-1].reason == "interrupted"
    assert events[-1].best is not None
    check_clean(engine)


@pytest.mark.parametrize("pass_number", [1, 2, 5, 9])
def test_a_model_that_yields_nan_is_one_clear_error(tiny, monkeypatch, pass_number):
    class Nan(Faulty):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.calls += 1
            out = self.function(*arguments, **options)
            return out * float("nan") if self.calls in self.at else out

    engine = make_engine(tiny)
    batch = engine.forest.batch
    monkeypatch.setattr(batch, "forward", Nan(batch.forward, {pass_number}, cuda_shortage))
    events, raised = collect(run(engine))
    assert isinstance(raised, FrtoolError)
    assert "NaN logits at step 0." in raised.message
    assert raised.hint
    assert events[-1].reason.startswith("failed: FrtoolError")
    check_clean(engine)


def test_bytes_that_are_no_characters_are_shown_as_such(loaded_model, byte_tokenizer, tmp_path):
    from frtool.trace import TraceReader, TraceWriter

    loaded = loaded_model(tokenizer=byte_tokenizer(), sharpness=0.05)
    engine = make_engine(loaded, delimiter="\n", max_step_tokens=20)
    path = tmp_path / "t.jsonl"
    with TraceWriter(path) as writer:
        events = list(run(engine, "best-of-n"))
        for event in events:
            writer.write(event)
    assert "\ufffd" in "".join(tree(events).values())
    assert tree(list(TraceReader(path))) == tree(events)
    path.read_text("utf-8")
    check_clean(engine)


@given(data=st.data(), algorithm=st.sampled_from(ALGORITHMS), reads=st.booleans())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_faults_in_any_number_and_order(tiny, undisturbed, data, algorithm, reads):
    """Blocks run out, passes find no memory, rewards are no numbers, logits are NaN, and the user loses patience."""
    blocks = data.draw(st.sampled_from([14, 30, 200]))
    engine = make_engine(tiny, read_rewards=reads, num_blocks=blocks, pipeline=data.draw(st.booleans()))
    calls = st.sets(st.integers(1, 80), max_size=4)
    for site in SITES:
        faulty = Faulty(getattr(engine.allocator, site), data.draw(calls), lambda: OutOfBlocks(1, 0))
        setattr(engine.allocator, site, faulty)
    batch = engine.forest.batch
    batch.forward = Faulty(batch.forward, data.draw(calls), cuda_shortage)  # type: ignore[method-assign]
    if engine.forest.passes is not None:
        launch = engine.forest.passes.launch
        engine.forest.passes.launch = Faulty(launch, data.draw(calls), cuda_shortage)  # type: ignore[method-assign]
        draw = engine.forest.passes.draw
        engine.forest.passes.draw = Faulty(draw, data.draw(calls), cuda_shortage)  # type: ignore[method-assign]
    scorer = None
    if data.draw(st.booleans()):
        scorer = Scorer(lambda: float("nan"), good=data.draw(st.integers(0, 20)))
    patience = iter([False] * data.draw(st.integers(0, 150)))
    events, raised = collect(run(engine, algorithm, scorer, interrupted=lambda: next(patience, True)))
    assert raised is None or isinstance(raised, BadReward)
    assert isinstance(events[-1], Ended)
    whole = tree(undisturbed(algorithm, reads))
    if scorer is None:
        assert all(text == whole.get(name, text) for name, text in tree(events).items())
    check_clean(engine, blocks)
