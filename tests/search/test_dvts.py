"""Diverse verifier tree search: subtrees that do not compete."""

from __future__ import annotations

import pytest

from frtool.search.events import Pruned
from frtool.search.registry import OptionError, make_algorithm


def test_a_hand_computed_search(search, scripted_model):
    draws = {"": "abcd", "b": "xy", "c": "xy", "cx": "pq"}
    rewards = {
        "a": 0.1,
        "b": 0.4,
        "c": 0.9,
        "d": 0.8,
        "bx": 0.5,
        "by": 0.7,
        "cx": 0.6,
        "cy": 0.2,
        "cxp": 0.3,
        "cxq": 0.4,
    }
    options = {"width": 4, "expand": 2, "oversample": 1}
    found = search("dvts", scripted_model(draws=draws | {"a": "z", "d": "z"}, rewards=rewards), options=options)
    # dealt in turn: a, c | b, d; so c leads the first subtree and d the second, though b loses only to d
    assert {node.id for node in found.added().values()} == {
        "0.0",
        "0.1",
        "0.2",
        "0.3",
        "0.2.0",
        "0.2.1",
        "0.3.0",
        "0.2.0.0",
        "0.2.0.1",
    }
    pruned = [event.ids for event in found.events if isinstance(event, Pruned)]
    assert pruned == [["0.0", "0.1"]]
    assert found.end.answer == "dz"


def test_each_subtree_follows_one_path_to_its_end(search, fake_model):
    found = search("dvts", fake_model(branching=12, depth=4, capacity=16), options={"width": 12, "expand": 3})
    for depth in range(1, 4):
        expanded = {node.id.rpartition(".")[0] for node in found.nodes() if node.id.count(".") == depth + 1}
        assert 1 <= len(expanded) <= 4
    assert found.end.reason == "finished"
    assert found.end.reward == max(node.reward for node in found.nodes() if node.terminal)


def test_one_subtree_is_a_greedy_search_by_value(search, scripted_model):
    draws = {"": "ab", "b": "xy", "bx": "pq"}
    rewards = {"a": 0.3, "b": 0.6, "bx": 0.9, "by": 0.1, "bxp": 0.2, "bxq": 0.8}
    found = search("dvts", scripted_model(draws=draws | {"a": "z"}, rewards=rewards), options={"width": 2, "expand": 2})
    assert found.end.answer == "bxq"


def test_a_width_that_cannot_be_dealt_is_refused():
    with pytest.raises(OptionError, match="width 10 is not a multiple of expand 4"):
        make_algorithm("dvts", {"width": 10})
