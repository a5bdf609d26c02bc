"""Searches that do not sample a line twice after the same node."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.search.budget import Budget
from frtool.search.events import NodeAdded, RunStarted, Selected, from_record, to_record
from frtool.search.options import OptionError
from frtool.search.registry import ALGORITHMS, make_algorithm
from frtool.search.resume import continue_search, record_of
from frtool.search.run import run_search

DISTINCT = sorted(name for name, options in ALGORITHMS.items() if "distinct" in options)
OPTIONS = {"beam": {"width": 12, "keep": 3}, "dvts": {"width": 8, "expand": 4}, "gumbel": {"considered": 5}}


def run(model, letters, name, steps=120, **options):
    events = run_search(
        algorithm=make_algorithm(name, OPTIONS.get(name, {}) | options),
        generator=model,
        scorer=None,
        task=letters,
        budget=Budget(steps=steps),
        clock=lambda: 0.0,
    )
    return list(events)


def tree(events):
    """Everything but the pace."""
    return [
        {key: value for key, value in to_record(event).items() if key != "poll"}
        for event in events
        if not isinstance(event, RunStarted | Selected) and event.kind not in ("tick", "end", "resume")
    ]


def test_those_that_want_distinct_children_have_the_option():
    assert DISTINCT == ["ab-mcts", "beam", "best-first", "dvts", "gumbel", "mcts", "rebase"]


def test_coverage_is_of_distinct_samples_only():
    make_algorithm("mcts", {"coverage": 0.9})
    with pytest.raises(OptionError, match="coverage means nothing where distinct is false") as error:
        make_algorithm("mcts", {"coverage": 0.9, "distinct": "false"})
    assert error.value.option == "coverage"


def test_a_node_whose_lines_hold_the_coverage_is_sampled_no_more(placed_model, letters):
    class Favourite(placed_model):
        def odds(self, path):
            return [0.98, 0.01, 0.01]

    model = Favourite(branching=3, depth=1, capacity=1)
    run(model, letters, "best-first", expand=9, coverage=0.9)
    assert model.drawn == ["a"]


@pytest.mark.parametrize("name", DISTINCT)
@given(seed=st.integers(0, 10**6), branching=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_no_line_is_sampled_twice_after_a_node(placed_model, letters, name, seed, branching):
    model = placed_model(branching=branching, depth=3, seed=seed, early=0.1, capacity=8)
    events = run(model, letters, name)
    assert events[-1].reason != "failed"
    assert max(Counter(model.drawn).values()) == 1
    assert model.at_rest()


@pytest.mark.parametrize("name", DISTINCT)
def test_without_the_option_samples_are_independent_and_repeat(placed_model, letters, name):
    model = placed_model(branching=3, depth=3, capacity=8)
    events = run(model, letters, name, distinct=False)
    assert max(Counter(model.drawn).values()) > 1
    assert all(request.uniform is None and not request.prefix for request in model.requests.values())
    assert not any(event.intervals for event in events if isinstance(event, NodeAdded))


@pytest.mark.parametrize("name", ["greedy", "best-of-n", "self-consistency"])
def test_chains_are_independent(placed_model, letters, name):
    model = placed_model(branching=3, depth=3, capacity=8)
    run(model, letters, name)
    assert all(request.uniform is None and not request.prefix for request in model.requests.values())


@pytest.mark.parametrize("name", DISTINCT)
def test_the_tree_depends_on_neither_capacity_nor_pace(placed_model, letters, name):
    trees = []
    for capacity, slowest in ((1, 1), (3, 2), (8, 5), (64, 9)):
        model = placed_model(branching=7, depth=4, seed=3, early=0.1, capacity=capacity, slowest=slowest)
        trees.append(tree(run(model, letters, name)))
    assert all(other == trees[0] for other in trees)
    assert len(trees[0]) > 30


@pytest.mark.parametrize("name", DISTINCT)
def test_another_seed_samples_other_lines(placed_model, letters, name):
    """The first sample of a node is told by the seed of the algorithm, which a run sets to its own."""
    orders = []
    for seed in (1, 2):
        model = placed_model(branching=9, depth=2, seed=3)
        run(model, letters, name, seed=seed)
        orders.append(model.drawn)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("name", DISTINCT)
def test_from_every_event_on_the_same_search_comes(placed_model, letters, name):
    def arguments(model):
        return {
            "algorithm": make_algorithm(name, OPTIONS.get(name)),
            "generator": model,
            "scorer": None,
            "task": letters,
            "budget": Budget(steps=40),
        }

    def make():
        return placed_model(branching=6, depth=3, seed=1, early=0.1, capacity=4)

    whole = list(run_search(**arguments(make()), clock=lambda: 0.0))
    for cut in range(1, len(whole)):
        known = [from_record(to_record(event)) for event in whole[:cut]]
        again = list(continue_search(record_of(known), **arguments(make()), clock=lambda: 0.0))
        assert tree(again) == tree(whole), f"cut after event {cut}"


@pytest.mark.parametrize("name", ["beam", "mcts", "best-first"])
def test_every_child_that_the_model_would_write_comes_before_a_node_is_given_up(placed_model, letters, name):
    model = placed_model(branching=9, depth=1, capacity=8)
    options = {"mcts": {"widen": 20}, "beam": {"width": 30}, "best-first": {"expand": 30}}[name]
    events = run(model, letters, name, **options)
    assert sorted(model.drawn) == list("abcdefghi")
    assert events[-1].reason in ("finished", "exhausted")


def test_state_copies_that_were_said_in_new_words_do_not_exhaust_a_node(placed_model):
    class OneState:
        """All paths of a letter lead to one state, but for those that begin with the last."""

        def answer(self, text):
            return text or None

        def key(self, text):
            return text

        def state(self, text):
            return "same" if text < "i" else None

    class Even(placed_model):
        def odds(self, path):
            return [1 / self.branching] * self.branching

    model = Even(branching=9, depth=2, seed=1)
    run(model, OneState(), "mcts", max_duplicates=2, widen=20)
    assert {path for path in model.drawn if len(path) == 1} == set("abcdefghi")
