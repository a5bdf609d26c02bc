"""greedy and best-of-n."""

from __future__ import annotations

import pytest

from frtool.search.events import id_order
from frtool.search.registry import make_algorithm


def test_greedy_takes_child_zero_until_the_path_ends(search, fake_model):
    found = search("greedy", fake_model(depth=4))
    assert [node.id for node in found.nodes()] == ["0.0", "0.0.0", "0.0.0.0", "0.0.0.0.0"]
    assert found.end.best == "0.0.0.0.0"
    assert (found.end.reason, found.end.terminals) == ("finished", 1)
    assert make_algorithm("greedy").greedy
    assert not make_algorithm("best-of-n").greedy


def test_best_of_n_samples_n_independent_chains(search, fake_model):
    found = search("best-of-n", fake_model(depth=3), options={"n": 5})
    assert {node.id for node in found.nodes()} == {f"0.{i}" + ".0" * below for i in range(5) for below in range(3)}
    assert all(node.duplicate_of is None for node in found.nodes())
    rewards = {node.id: node.reward for node in found.nodes() if node.terminal}
    assert found.end.best == max(sorted(rewards, key=id_order), key=rewards.__getitem__)


@pytest.mark.parametrize("capacity", [1, 2, 3, 16])
def test_best_of_n_gives_the_same_tree_whatever_the_batch(search, fake_model, capacity):
    def tree(size):
        found = search("best-of-n", fake_model(depth=4, capacity=size, slowest=5, early=0.2), options={"n": 12})
        return {node.id: node for node in found.nodes()}, found.end.best, found.end.answer

    assert tree(capacity) == tree(7)


def test_chains_that_agree_are_all_kept_and_counted_as_votes(search, scripted_model):
    model = scripted_model(draws={"": "aab", "a": "x", "b": "x"}, rewards={"ax": 0.9, "bx": 0.2})
    found = search("best-of-n", model, options={"n": 3})
    assert found.end.nodes == 6
    assert (found.end.best, found.end.answer, found.end.votes) == ("0.0.0", "ax", 2)


def test_a_weighted_vote_can_overrule_the_best_chain(search, scripted_model):
    draws = {"": "aab"}
    rewards = {"a": 0.4, "b": 0.7}
    assert search("best-of-n", scripted_model(draws=draws, rewards=rewards), options={"n": 3}).end.answer == "b"
    voted = search("best-of-n", scripted_model(draws=draws, rewards=rewards), options={"n": 3, "vote": "weighted"})
    assert (voted.end.answer, voted.end.best, voted.end.votes) == ("a", "0.0", 2)


@pytest.mark.parametrize(
    ("how", "answer"),
    [("last", "bx"), ("min", "ax"), ("product", "cx"), ("mean", "dx")],
)
def test_the_value_of_a_chain_is_the_chosen_aggregate(search, scripted_model, how, answer):
    rewards = {"a": 0.6, "ax": 0.6, "b": 0.1, "bx": 1.0, "c": 0.5, "cx": 0.74, "d": 0.35, "dx": 0.95}
    model = scripted_model(draws={"": "abcd", "a": "x", "b": "x", "c": "x", "d": "x"}, rewards=rewards)
    assert search("best-of-n", model, options={"n": 4, "aggregate": how}).end.answer == answer


def test_equal_chains_go_to_the_first_id(search, scripted_model):
    found = search("best-of-n", scripted_model(draws={"": "abcdefghijkl"}), options={"n": 12})
    assert found.end.best == "0.0"


def test_a_chain_frees_the_steps_behind_its_front(search, fake_model):
    model = fake_model(depth=6, capacity=4, slowest=1)
    held = []
    release = model.release
    model.release = lambda node_id: (held.append(len(model.held)), release(node_id))
    search("best-of-n", model, options={"n": 8})
    assert max(held) <= 2 * 4 + 1, "no more than the front and the one before it, for each row, and the root"
