"""Beam search: which children it asks for, which paths stay, and that it finds the best with enough width."""

from __future__ import annotations

import pytest

from frtool.search.budget import Budget
from frtool.search.events import Pruned

DRAWS = {"": "aabc", "a": "xy", "b": "xy", "c": "zz"}
REWARDS = {"a": 0.2, "b": 0.9, "c": 0.5, "bx": 0.3, "by": 0.6, "cz": 0.8}


def test_a_hand_computed_beam(search, scripted_model):
    found = search(
        "beam", scripted_model(draws=DRAWS, rewards=REWARDS), options={"width": 4, "keep": 2, "oversample": 1}
    )
    assert [(node.id, node.text, node.duplicate_of) for node in found.nodes()] == [
        ("0.0", "a", None),
        ("0.1", "a", "0.0"),
        ("0.2", "b", None),
        ("0.3", "c", None),
        ("0.2.0", "x", None),  # b before c: it is the better beam
        ("0.2.1", "y", None),
        ("0.3.0", "z", None),
        ("0.3.1", "z", "0.3.0"),
    ]
    assert [event for event in found.events if isinstance(event, Pruned)] == [Pruned(["0.0"], "beam")]
    assert (found.end.reason, found.end.answer, found.end.best) == ("finished", "cz", "0.3.0")


def test_a_hand_computed_lookahead(search, scripted_model):
    draws = {"": "ab", "a": "xy", "b": "xy", "ax": "pq", "bx": "pq", "by": "pq"}
    rewards = {"a": 0.9, "b": 0.5, "ax": 0.1, "bx": 0.8, "by": 0.3, "bxp": 0.2, "byp": 0.7, "byq": 0.6}
    options = {"width": 2, "keep": 1, "oversample": 1, "lookahead": 1}
    found = search("beam", scripted_model(draws=draws, rewards=rewards), options=options)
    assert [node.id for node in found.nodes()] == [
        *("0.0", "0.1"),
        *("0.0.0", "0.1.0"),  # ax .1 and bx .8: b stays, although a has .9
        "0.1.1",  # its other child is that of the rollout
        *("0.1.0.0", "0.1.1.0"),  # bxp .2 and byp .7: by stays, although bx has .8
        "0.1.1.1",
    ]
    pruned = [event for event in found.events if isinstance(event, Pruned)]
    assert pruned == [Pruned(["0.0", "0.0.0"], "beam"), Pruned(["0.1.0"], "beam")]
    assert (found.end.reason, found.end.answer) == ("finished", "byp")
    without = search("beam", scripted_model(draws=draws, rewards=rewards), options=options | {"lookahead": 0})
    assert {node.id.rpartition(".")[0] for node in without.nodes()} == {"0", "0.0"}  # it goes on with a


def test_lookahead_takes_the_likeliest_step_and_children_are_sampled(search, scripted_model):
    asked = {}

    class Watched(scripted_model):
        def submit(self, expand):
            asked[expand.id] = expand.greedy
            super().submit(expand)

    draws = {"": "ab", "a": "xy", "b": "xy", "ax": "pq", "bx": "pq", "by": "pq"}
    found = search("beam", Watched(draws=draws), options={"width": 2, "keep": 1, "oversample": 1, "lookahead": 2})
    # The first child of each of the root's children, and the first of those, belong to a rollout.
    assert {name for name, greedy in asked.items() if greedy} >= {"0.0.0", "0.1.0", "0.0.0.0", "0.1.0.0"}
    assert not any(asked[name] for name in ("0.0", "0.1"))
    assert any(not greedy for name, greedy in asked.items() if name.count(".") > 1)
    assert found.end.reason == "finished"


def test_duplicates_are_replaced_until_enough_are_distinct_or_tries_run_out(search, scripted_model):
    def children(oversample):
        model = scripted_model(draws={"": "aaaabc"}, rewards=REWARDS)
        found = search("beam", model, options={"width": 3, "keep": 1, "oversample": oversample})
        return [node.text for node in found.nodes()], found.end.nodes

    assert children(1) == (list("aaa"), 1)
    assert children(5 / 3) == (list("aaaab"), 2)
    assert children(10) == (list("aaaabc"), 3)


def test_sampling_stops_when_the_model_has_nothing_else_to_say(search, scripted_model):
    found = search(
        "beam", scripted_model(draws={"": "ab"}, share=1.0), options={"width": 8, "keep": 1, "oversample": 9}
    )
    assert len(found.nodes()) == 8, "the first round was asked for before anything was known"


def test_finished_paths_stay_candidates_and_end_the_search_when_they_lead(search, scripted_model):
    draws = {"": "abcd", "b": "xy", "c": "xy", "bx": "pq", "by": "pq"}
    rewards = {"a": 0.7, "b": 0.8, "c": 0.6, "d": 0.1, "bx": 0.2, "by": 0.1}
    found = search(
        "beam", scripted_model(draws=draws, rewards=rewards), options={"width": 4, "keep": 2, "oversample": 1}
    )
    # a (finished, .7) holds a place, so only b goes on; then a and d (finished) lead bx .2 and by .1 no more: bx stays
    assert [node.id for node in found.nodes()][4:6] == ["0.1.0", "0.1.1"]
    assert found.end.answer == "a"
    assert {event.reason for event in found.events if isinstance(event, Pruned)} == {"beam"}


def test_a_finished_path_without_an_answer_cannot_win(search, scripted_model, letter_task):
    letter_task.answer = lambda text: None if text == "a" else text
    found = search(
        "beam", scripted_model(draws={"": "ab"}, rewards={"a": 0.9, "b": 0.1}), options={"width": 2, "keep": 1}
    )
    assert found.end.answer == "b"


def test_equal_states_are_expanded_once(search, scripted_model):
    class Sorted:
        def answer(self, text):
            return text

        def key(self, text):
            return text

        def state(self, text):
            return "".join(sorted(text))

    draws = {"": "ab", "a": "b", "b": "a", "ab": "c", "ba": "c"}
    found = search("beam", scripted_model(draws=draws), options={"width": 2, "keep": 2}, task=Sorted())
    same = [node for node in found.nodes() if node.duplicate_of]
    assert {(node.id.rpartition(".")[0], node.duplicate_of) for node in same} == {("0.1", "0.0.0")}
    assert {node.id for node in found.nodes() if node.terminal} == {"0.0.0.0"}


def test_the_steps_of_a_lookahead_count_against_the_budget(search, scripted_model):
    draws = {"": "abc"} | {letter + below: "x" for letter in "abc" for below in ("", "x", "xx")}
    options = {"width": 3, "keep": 1, "lookahead": 2, "oversample": 1}
    found = search("beam", scripted_model(draws=draws), options=options, budget=Budget(steps=9))
    assert found.end.reason == "steps"
    assert [node.id for node in found.nodes()] == [
        *("0.0", "0.1", "0.2"),
        *("0.0.0", "0.1.0", "0.2.0"),
        *("0.0.0.0", "0.1.0.0", "0.2.0.0"),
    ]


@pytest.mark.parametrize("lookahead", [1, 9])
def test_a_rollout_to_the_end_costs_no_place_in_the_beam(search, fake_model, lookahead):
    model = fake_model(branching=5, depth=4, capacity=16)
    options = {"width": 16, "keep": 4, "oversample": 9, "lookahead": lookahead}
    found = search("beam", model, options=options, budget=Budget(steps=3000))
    grown = {node.id.rpartition(".")[0] for node in found.nodes() if int(node.id.rpartition(".")[2]) > 0}
    assert [sum(parent.count(".") == depth for parent in grown) for depth in range(4)] == [1, 4, 4, 4]


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_full_width_finds_the_best_path(search, fake_model, seed):
    model = fake_model(branching=3, depth=3, seed=seed, early=0.2)
    found = search("beam", model, options={"width": 81, "keep": 27, "expand": 3, "oversample": 50})
    assert found.end.reward == max(model.reward(path) for path in model.paths())


@pytest.mark.parametrize("capacity", [1, 5, 16])
def test_the_tree_does_not_depend_on_the_capacity(search, fake_model, capacity):
    def tree(size):
        found = search(
            "beam", fake_model(branching=5, depth=4, capacity=size, slowest=6), options={"width": 12, "keep": 3}
        )
        return found.nodes(), found.end.best

    assert tree(capacity) == tree(3)


def test_at_most_keep_beams_stay_open_after_a_level(search, fake_model):
    model = fake_model(branching=6, depth=5, capacity=64, slowest=1)
    found = search("beam", model, options={"width": 12, "keep": 3})
    parents = {}
    for node in found.nodes():
        parent = node.id.rpartition(".")[0]
        parents.setdefault(parent.count("."), set()).add(parent)
    assert all(len(beams) <= 3 for beams in parents.values())
