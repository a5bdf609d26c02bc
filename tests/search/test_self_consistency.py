"""Self-consistency: the vote, and stopping when it is settled."""

from __future__ import annotations

import random

import pytest

from frtool.search.registry import OptionError, make_algorithm
from frtool.search.self_consistency import certainty


def test_the_most_frequent_answer_wins_over_the_best_one(search, scripted_model):
    model = scripted_model(draws={"": "abcba"}, rewards={"a": 0.2, "b": 0.3, "c": 0.9})
    found = search("self-consistency", model, options={"n": 5})
    assert (found.end.answer, found.end.votes) == ("b", 2)  # a and b have two each; b has the larger sum
    weighted = search(
        "self-consistency",
        scripted_model(draws=model.draws, rewards=model.rewards),
        options={"n": 5, "vote": "weighted"},
    )
    assert weighted.end.answer == "c"


def test_paths_without_an_answer_have_no_vote(search, scripted_model, letter_task):
    letter_task.answer = lambda text: None if text == "a" else text
    assert search("self-consistency", scripted_model(draws={"": "aaab"}), options={"n": 4}).end.answer == "b"


def test_it_stops_when_the_leading_answer_is_certain(search, scripted_model):
    # chains: a a b a a a …; certainty(5, 1) = 1 - (C(7,6) + C(7,7)) / 2^7 = .9375; certainty(6, 1) = .965
    model = scripted_model(draws={"": "aabaaaaaaaaaaaaa"}, capacity=1)
    found = search("self-consistency", model, options={"n": 16, "converge": 0.95})
    assert (found.end.reason, found.end.terminals, found.end.answer) == ("converged", 7, "a")
    never = search("self-consistency", scripted_model(draws=model.draws), options={"n": 16})
    assert never.end.terminals == 16


def test_a_weighted_vote_converges_by_its_values(search, scripted_model):
    # certainty(2.7, .2) = .899 after a a a, certainty(3.6, .2) = .944 after the fourth a
    model = scripted_model(draws={"": "baaaaaaaaa"}, rewards={"a": 0.9, "b": 0.2}, capacity=1)
    found = search("self-consistency", model, options={"n": 30, "vote": "weighted", "converge": 0.93})
    assert (found.end.terminals, found.end.answer) == (5, "a")
    low = scripted_model(draws=model.draws, rewards={"a": 0.09, "b": 0.02}, capacity=1)
    found = search("self-consistency", low, options={"n": 30, "vote": "weighted", "converge": 0.93})
    assert found.end.terminals > 20, "small values settle little"


def test_it_stops_when_no_later_chain_can_change_the_vote(search, scripted_model):
    model = scripted_model(draws={"": "abaaaaaaaa"}, capacity=1)
    found = search("self-consistency", model, options={"n": 8, "converge": 1})
    assert (found.end.terminals, found.end.answer) == (6, "a")  # 5 against 1, and 2 to come


@pytest.mark.parametrize("capacity", [1, 3, 16])
def test_the_convergence_does_not_depend_on_the_batch(search, fake_model, capacity):
    def answer(size):
        model = fake_model(branching=2, depth=2, capacity=size, slowest=6, seed=5)
        found = search("self-consistency", model, options={"n": 40, "converge": 0.8})
        return found.end.answer, found.end.best, [node.id for node in found.algorithm._counted]

    assert answer(capacity) == answer(7)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (4, 3), (9, 2), (5000, 4800)])
def test_the_certainty_is_the_beta_integral(first, second):
    rng = random.Random(1)
    wins = sum(rng.betavariate(first + 1, second + 1) > 0.5 for _ in range(20_000))
    assert certainty(first, second) == pytest.approx(wins / 20_000, abs=0.015)


def test_a_convergence_below_a_half_is_refused():
    with pytest.raises(OptionError, match=r"converge must be between 0\.5 and 1"):
        make_algorithm("self-consistency", {"converge": 0.3})
