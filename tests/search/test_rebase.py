"""REBASE: shares by reward."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frtool.search.events import Pruned
from frtool.search.rebase import shares


def test_a_hand_computed_level(search, scripted_model):
    draws = {"": "abcdefgh", "a": "pqrstuvw", "b": "pqrstuvw", "c": "pqrstuvw"}
    rewards = {"a": 0.9, "b": 0.7, "c": 0.1}
    options = {"width": 8, "balance": 0.2}
    found = search("rebase", scripted_model(draws=draws, rewards=rewards), options=options)
    # d … h are finished, so 3 samples for a, b, c by exp(4.5), exp(3.5), exp(.5): 2.16, .79, .04 -> 2, 1, 0
    assert [node.id for node in found.nodes()][8:] == ["0.0.0", "0.0.1", "0.1.0"]
    assert Pruned(["0.2"], "balance") in found.events
    assert (found.end.reason, found.end.terminals) == ("finished", 8)


def test_it_ends_with_width_finished_paths(search, fake_model):
    found = search("rebase", fake_model(branching=20, depth=4, early=0.2, capacity=16), options={"width": 24})
    assert found.end.reason == "finished"
    assert found.end.terminals <= 24


@given(st.lists(st.floats(-50, 50), max_size=9), st.integers(0, 60))
def test_shares_are_whole_add_up_and_follow_the_formula(logits, total):
    counts = shares(logits, total)
    assert sum(counts) == (total if logits else 0)
    weights = [math.exp(logit - max(logits)) for logit in logits]
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - total * weight / sum(weights)) < 1 + 1e-9


def test_nothing_left_to_share_gives_nothing():
    assert shares([1.0, 2.0], -3) == [0, 0]
    assert shares([], 5) == []


def test_equal_remainders_go_to_the_first():
    assert shares([0.0, 0.0, 0.0], 4) == [2, 1, 1]


@pytest.mark.parametrize(("vote", "answer"), [("weighted", "a"), ("best", "b")])
def test_the_vote_is_an_option(search, scripted_model, letter_task, vote, answer):
    letter_task.answer = lambda text: text[0]
    draws = {"": "abc", "a": "pqr", "b": "pqr", "c": "pqr"}
    rewards = {"a": 0.5, "b": 0.3, "c": 0.0, "ap": 0.4, "aq": 0.4, "bp": 0.6}
    options = {"width": 3, "vote": vote}
    assert search("rebase", scripted_model(draws=draws, rewards=rewards), options=options).end.answer == answer
