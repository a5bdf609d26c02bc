"""Searches that go on from any place of their record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.search.budget import Budget
from frtool.search.events import Ended, Event, NodeAdded, Resumed, RunStarted, Tick, from_record, to_record
from frtool.search.protocols import Expand, Step
from frtool.search.registry import ALGORITHMS, make_algorithm
from frtool.search.resume import Mismatch, continue_search, record_of
from frtool.search.run import run_search

OPTIONS: dict[str, dict[str, Any]] = {
    "best-of-n": {"n": 9},
    "self-consistency": {"n": 9},
    "beam": {"width": 6, "keep": 2},
    "dvts": {"width": 6, "expand": 3},
    "mcts": {"simulations": 12},
    "gumbel": {"simulations": 12},
}


class CountingScorer:
    """Costs three tokens a step and one a call."""

    name = "counting"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.judged: list[str] = []

    def score(self, nodes: Any, steps: list[Step], tree: Any) -> list[float]:
        self.model.scorer_tokens += 1 + 3 * len(steps)
        self.judged += [node.id for node in nodes]
        return [step.reward or 0.0 for step in steps]


@dataclass
class Case:
    """One search that can be run whole or from a record."""

    model_class: type[Any]
    task: Any
    algorithm: str
    budget: Budget
    seed: int = 0
    costly: bool = False
    merged: int = 0

    def settings(self, **changes: Any) -> dict[str, Any]:
        model = self.model_class(branching=3, depth=3, capacity=4, seed=self.seed, early=0.1)
        model.grown = []
        self.model, submit = model, model.submit
        self.scorer = CountingScorer(model) if self.costly else None

        def noting(expand: Expand) -> None:
            model.grown.append(expand.id)
            submit(expand)

        def restore(step: Step) -> None:
            assert step.parent in model.held
            name = f"{step.parent}.{step.ordinal}"
            model.held[name] = model.texts[name] = model.texts[step.parent] + step.text

        model.submit, model.restore = noting, restore
        return {
            "algorithm": make_algorithm(self.algorithm, OPTIONS.get(self.algorithm)),
            "generator": model,
            "scorer": self.scorer,
            "task": self.task,
            "budget": self.budget,
            "clock": lambda: 0.0,
        } | changes

    def whole(self, **changes: Any) -> list[Event]:
        return list(run_search(**self.settings(**changes)))

    def resumed(self, events: list[Event], **changes: Any) -> list[Event]:
        return list(continue_search(record_of(reread(events)), **self.settings(**changes)))


def reread(events: list[Event]) -> list[Event]:
    return [from_record(to_record(event)) for event in events]


def lasting(events: list[Event]) -> list[dict[str, Any]]:
    """What must be the same: all but clocks and the memory of the cache."""
    left = []
    for event in events:
        if isinstance(event, Tick | Resumed):
            continue
        record = to_record(event)
        for name in ("kv_peak_blocks", "kv_peak_bytes", "kv_unshared_peak_bytes", "seconds", "recomputed_tokens"):
            record.pop(name, None)
        left.append(record)
    return left


@pytest.fixture(params=sorted(ALGORITHMS))
def algorithm(request: pytest.FixtureRequest) -> str:
    return request.param


BUDGETS = [Budget(steps=40), Budget(tokens=70), Budget(nodes=15)]


@pytest.mark.parametrize("budget", BUDGETS, ids=["steps", "tokens", "nodes"])
@pytest.mark.parametrize("costly", [False, True], ids=["read", "scored"])
def test_from_every_event_on_the_same_search_comes(fake_model_class, letters, algorithm, budget, costly):
    case = Case(fake_model_class, letters, algorithm, budget, costly=costly)
    whole = case.whole()
    for cut in range(1, len(whole), 1 if budget.steps else 3):
        again = case.resumed(whole[:cut])
        assert lasting(again) == lasting(whole), f"cut after event {cut}"
        assert sum(isinstance(event, Resumed) for event in again) == 1
        assert not set(record_of(whole[:cut]).nodes) & set(case.model.grown)
        assert case.model.at_rest()


@given(data=st.data(), seed=st.integers(0, 5), name=st.sampled_from(sorted(ALGORITHMS)))
@settings(max_examples=60, deadline=None)
def test_interrupted_again_and_again_the_same_tree_comes(fake_model_class, letters, data, seed, name):
    case = Case(fake_model_class, letters, name, Budget(tokens=90), seed=seed, costly=seed % 2 == 0)
    whole = case.whole()
    events: list[Event] = []
    for _ in range(data.draw(st.integers(1, 4))):
        stopped = {"interrupted": patience(data.draw(st.integers(0, 25)))}
        run: Iterator[Event] = (
            continue_search(record_of(reread(events)), **case.settings(**stopped))
            if events
            else run_search(**case.settings(**stopped))
        )
        events = written(events, list(run))
        if events[-1].reason != "interrupted":
            break
    else:
        events = written(events, case.resumed(events))
    assert lasting(events) == lasting(whole)


def test_steps_that_a_cut_had_judged_together_cost_what_they_do_one_after_the_other(fake_model_class, letters):
    case = Case(fake_model_class, letters, "mcts", Budget(tokens=90), costly=True)
    whole = case.whole()
    events = list(run_search(**case.settings(interrupted=patience(8))))
    late = [event for event in events if isinstance(event, NodeAdded) and event.late and event.duplicate_of is None]
    assert len(late) > 1
    assert lasting(written(events, case.resumed(events))) == lasting(whole)


def patience(polls: int) -> Callable[[], bool]:
    """An interrupt after so many polls."""
    left = iter([False] * polls)
    return lambda: next(left, True)


def written(before: list[Event], run: list[Event]) -> list[Event]:
    """What the trace holds after a run that went on from it."""
    if not before:
        return run
    at = next((i for i, event in enumerate(run) if isinstance(event, Resumed)), None)
    return before if at is None else [*record_of(before).events, *run[at:]]


def test_an_interrupt_from_outside_ends_it_with_the_best_so_far(fake_model_class, letters):
    case = Case(fake_model_class, letters, "beam", Budget(steps=40))
    whole = case.whole()
    for places in (1, 6, 9):
        events = continue_search(record_of(whole[:8]), **case.settings())
        for _ in range(places):
            next(events)
        assert events.throw(KeyboardInterrupt()).reason == "interrupted"
        with pytest.raises(KeyboardInterrupt):
            next(events)
        assert case.model.at_rest()


def test_budgets_count_what_was_spent_before(fake_model_class, letters):
    case = Case(fake_model_class, letters, "mcts", Budget(seconds=10.0))
    events = case.whole(clock=iter(range(10**6)).__next__)
    cut = [event for event in events if not isinstance(event, Ended)]
    ticks = iter(range(10**6))
    again = case.resumed(cut, clock=ticks.__next__)
    assert again[-1].reason == "seconds"
    assert again[-1].seconds >= 10
    spent = max(event.seconds for event in cut if isinstance(event, Tick))
    assert next(ticks) <= 10 - spent + 5


def test_verdicts_are_not_asked_for_again(fake_model_class, letters):
    class Verifier:
        name = "counting"
        asked: Callable[..., Any]

        def __init__(self) -> None:
            self.seen: list[str] = []

        def verify(self, answer: str) -> bool:
            self.seen.append(answer)
            return False

    case = Case(fake_model_class, letters, "best-of-n", Budget(steps=40))
    first, second = Verifier(), Verifier()
    whole = case.whole(verifier=first)
    again = case.resumed(whole[:-2], verifier=second)
    assert lasting(again) == lasting(whole)
    assert len(first.seen) > 3
    assert len(second.seen) <= 1


def test_another_seed_or_option_is_noticed(fake_model_class, letters):
    case = Case(fake_model_class, letters, "beam", Budget(steps=40))
    whole = case.whole()
    with pytest.raises(Mismatch, match=r"recorded"):
        case.resumed(whole[:-5], algorithm=make_algorithm("beam", {"width": 6, "keep": 4}))
    assert case.model.at_rest()


def test_what_was_spent_and_why_it_stopped_is_told(fake_model_class, letters):
    case = Case(fake_model_class, letters, "beam", Budget(steps=40))
    stopped = case.whole(interrupted=patience(6), clock=iter(range(10**6)).__next__)
    assert stopped[-1].reason == "interrupted"
    record = record_of(stopped)
    assert record.seconds == stopped[-1].seconds
    resumed = [event for event in case.resumed(stopped) if isinstance(event, Resumed)]
    assert resumed == [Resumed(record.seconds, len(record.nodes), "interrupted")]


def test_a_record_needs_its_beginning():
    with pytest.raises(ValueError, match="begins"):
        record_of([])
    assert isinstance(record_of([RunStarted("p", {})]).started, RunStarted)
