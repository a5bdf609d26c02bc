"""Best-first search: the order of expansion, and that nothing is lost."""

from __future__ import annotations

import pytest


def test_a_hand_computed_order(search, scripted_model):
    draws = {"": "ab", "a": "xy", "b": "xy", "ax": "p", "ay": "p", "bx": "p"}
    rewards = {"a": 0.6, "b": 0.5, "ax": 0.3, "ay": 0.4, "bx": 0.9, "by": 0.1, "bxp": 0.7, "axp": 0.2, "ayp": 0.95}
    options = {"expand": 2, "leaf_batch": 1, "oversample": 1}
    found = search("best-first", scripted_model(draws=draws, rewards=rewards), options=options)
    parents = []
    for node in found.nodes():
        parent = found.text(node.id.rpartition(".")[0])
        if parent not in parents:
            parents.append(parent)
    assert parents == ["", "a", "b", "bx", "ay", "ax"]
    assert (found.end.reason, found.end.answer) == ("exhausted", "ayp")


def test_it_stops_with_enough_finished_paths_of_enough_value(search, scripted_model):
    draws = {"": "abcdef"}
    rewards = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.7, "e": 0.99}
    options = {"expand": 6, "answers": 2, "accept": 0.6}
    found = search("best-first", scripted_model(draws=draws, rewards=rewards), options=options)
    assert (found.end.reason, found.end.answer, found.end.nodes) == ("answers", "b", 4)


@pytest.mark.parametrize("seed", range(4))
def test_with_budget_enough_it_finds_the_best_path(search, fake_model, seed):
    model = fake_model(branching=3, depth=3, seed=seed, early=0.2)
    found = search("best-first", model, options={"expand": 3, "oversample": 60})
    assert found.end.reason == "exhausted"
    assert found.end.reward == max(model.reward(path) for path in model.paths())


def test_no_more_than_leaf_batch_steps_are_expanded_at_once(search, fake_model):
    model = fake_model(branching=9, depth=5, capacity=64, slowest=1)
    parents = []
    poll = model.poll

    def watched():
        parents.append(len({expand.parent for expand in model.under_way}))
        return poll()

    model.poll = watched
    search("best-first", model, options={"leaf_batch": 3})
    assert max(parents) == 3
