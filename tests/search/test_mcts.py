"""Monte Carlo tree search: the formula by hand, widening, closing, and the oracle."""

from __future__ import annotations

import math

import pytest

from frtool.search.budget import Budget
from frtool.search.events import Backup, Pruned
from frtool.search.registry import OptionError, make_algorithm

BY_HAND = {"c_puct": 1, "widen": 1, "trust": 1, "leaf_batch": 1}


def test_a_hand_computed_search(search, scripted_model):
    draws = {"": "abc", "a": "xy", "b": "xy", "c": "xy"}
    rewards = {"a": 0.5, "ax": 0.2, "ay": 0.9, "b": 0.4, "bx": 0.6, "by": 0.1, "c": 0.3, "cx": 0.3}
    found = search("mcts", scripted_model(draws=draws, rewards=rewards), options=BY_HAND | {"simulations": 5})
    assert [node.id for node in found.nodes()] == [
        "0.0",  # n = 1: one child allowed; then down to the end
        "0.0.0",
        "0.1",  # n = 2: ceil(sqrt 2) = 2 allowed
        "0.1.0",
        "0.1.1",  # n = 3: Q(a) = .35 -> .375, Q(b) = .5 -> .75, the same exploration: b
        "0.0.1",  # n = 4: .5 + .5 for a against .533 + .333 for b
        "0.2",  # n = 5: ceil(sqrt 5) = 3 allowed
        "0.2.0",
    ]
    backups = [event for event in found.events if isinstance(event, Backup)]
    assert backups == [
        Backup("0.0.0", 0.2),
        Backup("0.1.0", 0.6),
        Backup("0.1.1", 0.1),
        Backup("0.0.1", 0.9),
        Backup("0.2.0", 0.3),
    ]
    assert (found.end.answer, found.end.best, found.end.reason) == ("ay", "0.0.1", "simulations")


def test_max_backup_returns_to_the_best_path_where_mean_leaves_it(search, scripted_model):
    draws = {"": "ab", "a": "xyz", "b": "xyz"}
    rewards = {"a": 0.9, "b": 0.9, "ax": 0.8, "ay": 0.0, "az": 0.0, "bx": 0.5, "by": 0.5}
    fourth = {}
    for backup in ("mean", "max"):
        options = BY_HAND | {"backup": backup, "c_puct": 0, "trust": 0, "simulations": 4}
        found = search("mcts", scripted_model(draws=draws, rewards=rewards), options=options)
        *_, third, fourth[backup] = [node.id for node in found.nodes()]
        assert third == "0.0.1"  # a has .8 against .5 and gets a second child, worth 0
    assert fourth == {"mean": "0.1.1", "max": "0.0.2"}  # a's mean is .4 now


def test_uct_by_hand(search, scripted_model):
    draws = {"": "abc", "a": "xy", "b": "xy", "c": "xy"}
    rewards = {"a": 0.5, "ax": 0.2, "ay": 0.9, "b": 0.4, "bx": 0.6, "by": 0.1, "c": 0.3, "cx": 0.3}
    options = {"select": "uct", "c_uct": 1, "widen": 1, "trust": 0, "leaf_batch": 1, "simulations": 5}
    found = search("mcts", scripted_model(draws=draws, rewards=rewards), options=options)
    assert [node.id for node in found.nodes()] == [
        "0.0",
        "0.0.0",
        "0.1",  # n = 2: two allowed, and the child without visits comes first
        "0.1.0",
        "0.1.1",  # n = 3: sqrt(ln 3 / 1) for both; Q = 0 for a, 1 for b
        "0.0.1",  # n = 4: .2 + sqrt(ln 4 / 1) = 1.377 for a, .5 + sqrt(ln 4 / 2) = 1.333 for b; PUCT would take b
        "0.2",
        "0.2.0",
    ]


def test_terminal_backup_ignores_what_the_scorer_said_on_the_way(search, scripted_model):
    rewards = {"a": 0.9, "b": 0.1, "ax": 0.1, "bx": 0.8}
    third = {}
    for backup in ("mean", "product", "terminal"):
        model = scripted_model(draws={"": "ab", "a": "xy", "b": "xy"}, rewards=rewards)
        options = {"select": "uct", "c_uct": 0.01, "widen": 1, "leaf_batch": 1, "simulations": 3, "backup": backup}
        third[backup] = search("mcts", model, options=options).nodes()[-1].id
    assert third == {"mean": "0.0.1", "product": "0.0.1", "terminal": "0.1.1"}


def test_product_backup_values_a_path_by_all_its_steps(search, scripted_model):
    rewards = {"a": 0.5, "ax": 0.9, "b": 0.9, "bx": 0.6}
    answers = {}
    for backup in ("mean", "product"):
        model = scripted_model(draws={"": "ab", "a": "x", "b": "x"}, rewards=rewards)
        found = search("mcts", model, options=BY_HAND | {"backup": backup, "simulations": 2})
        answers[backup] = found.end.answer
    assert answers == {"mean": "ax", "product": "bx"}
    assert [event.value for event in found.events if isinstance(event, Backup)] == pytest.approx([0.45, 0.54])


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"select": "uct", "c_puct": 0.5}, "c_puct"),
        ({"c_uct": 0.5}, "c_uct"),
        ({"backup": "terminal", "trust": 1}, "trust"),
    ],
)
def test_an_option_that_the_others_leave_without_meaning_is_refused(options, wrong):
    with pytest.raises(OptionError, match=f"{wrong} means nothing with") as error:
        make_algorithm("mcts", options)
    assert error.value.option == wrong


def test_every_simulation_ends_in_a_finished_path(search, fake_model):
    found = search("mcts", fake_model(branching=4, depth=5, early=0.1), options={"simulations": 20, "leaf_batch": 4})
    finished = {node.id for node in found.nodes() if node.terminal}
    assert [event.id in finished for event in found.events if isinstance(event, Backup)] == [True] * 20


@pytest.mark.parametrize(("widen", "depths"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 1, 2, 2, 3, 3])])
def test_the_root_is_not_widened_again_before_a_path_is_finished(search, fake_model, widen, depths):
    options = {"leaf_batch": 1, "widen": widen}
    found = search("mcts", fake_model(depth=6, branching=99), options=options, budget=Budget(steps=6))
    assert [node.id.count(".") for node in found.nodes()] == depths


def test_a_simulation_follows_the_better_of_the_new_children(search, scripted_model):
    model = scripted_model(draws={"": "abc", "a": "x", "b": "x", "c": "x"}, rewards={"a": 0.2, "b": 0.8, "bx": 0.7})
    found = search("mcts", model, options={"leaf_batch": 1, "simulations": 1})
    assert [node.id for node in found.nodes()] == ["0.0", "0.1", "0.1.0"]


@pytest.mark.parametrize(("widen", "power"), [(1, 0.5), (2, 0.5), (3, 0.3)])
def test_open_children_grow_with_visits_as_the_formula_says(search, fake_model, widen, power):
    options = {"widen": widen, "widen_power": power, "leaf_batch": 1, "simulations": 60}
    found = search("mcts", fake_model(branching=60, depth=6, slowest=1), options=options, budget=Budget(steps=5000))
    children = sum(node.id.count(".") == 1 and not node.duplicate_of for node in found.nodes())
    assert children == math.ceil(widen * 60**power)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("leaf_batch", [1, 8])
def test_with_budget_enough_it_closes_the_tree_and_finds_the_best(search, fake_model, seed, leaf_batch):
    model = fake_model(branching=3, depth=3, seed=seed, early=0.2)
    found = search("mcts", model, options={"leaf_batch": leaf_batch, "max_duplicates": 200}, budget=Budget(steps=50000))
    assert found.end.reason == "exhausted"
    assert {node.answer for node in found.nodes() if node.terminal} == set(model.paths())
    assert found.end.reward == max(model.reward(path) for path in model.paths())


def test_one_duplicate_never_closes_a_node(search, scripted_model):
    model = scripted_model(draws={"": "ab", "a": "xxxy", "b": "z"}, rewards={"ax": 0.1, "ay": 0.9, "bz": 0.2})
    found = search("mcts", model, options={"leaf_batch": 1, "max_duplicates": 3}, budget=Budget(steps=60))
    assert found.end.answer == "ay"


def test_a_node_is_closed_after_max_duplicates_in_a_row(search, scripted_model):
    model = scripted_model(draws={"": "a", "a": "x"}, share=0.5)
    found = search("mcts", model, options={"leaf_batch": 1, "max_duplicates": 3})
    assert found.end.reason == "exhausted"
    assert [node.id for node in found.nodes() if node.id.startswith("0.0.")] == ["0.0.0", "0.0.1", "0.0.2", "0.0.3"]
    assert Pruned(["0.0"], "exhausted") in found.events


def test_a_node_whose_children_hold_all_probability_is_closed_at_once(search, scripted_model):
    model = scripted_model(draws={"": "a", "a": "x"}, share=1.0)
    found = search("mcts", model, options={"leaf_batch": 1})
    assert [node.id for node in found.nodes()] == ["0.0", "0.0.0"]
    assert found.end.reason == "exhausted"


def test_simulations_at_once_spread_over_the_tree(search, scripted_model):
    draws = {"": "abcd"} | dict.fromkeys("abcd", "pqrs")
    model = scripted_model(draws=draws, capacity=16)
    found = search("mcts", model, options={"leaf_batch": 4, "simulations": 4})
    assert {node.id for node in found.nodes() if node.terminal} == {"0.0.0", "0.1.0", "0.2.0", "0.3.0"}


@pytest.mark.parametrize("capacity", [1, 3, 32])
def test_the_tree_depends_on_the_leaf_batch_but_not_on_the_capacity(search, fake_model, capacity):
    def tree(size, pace):
        model = fake_model(branching=5, depth=4, capacity=size, slowest=pace)
        found = search("mcts", model, options={"leaf_batch": 6}, budget=Budget(steps=300))
        return [(node.id, node.text, node.duplicate_of) for node in found.nodes()], found.end.best

    assert tree(capacity, 1) == tree(8, 7)


def test_it_stops_at_an_accepted_value(search, scripted_model):
    model = scripted_model(draws={"": "abc"}, rewards={"a": 0.3, "b": 0.97, "c": 0.99})
    found = search("mcts", model, options={"leaf_batch": 1, "accept": 0.95})
    assert (found.end.reason, found.end.answer) == ("accepted", "b")


def test_an_equal_state_elsewhere_is_searched_on_from_its_first_path(search, scripted_model):
    class Sorted:
        def answer(self, text):
            return text

        def key(self, text):
            return text

        def state(self, text):
            return "".join(sorted(text))

    draws = {"": "ab", "a": "bc", "b": "ac", "ab": "xyz", "ac": "xyz", "ba": "xyz", "bc": "xyz"}
    found = search(
        "mcts", scripted_model(draws=draws), options={"leaf_batch": 3}, task=Sorted(), budget=Budget(steps=80)
    )
    assert found.end.reason == "exhausted"
    texts = {"".join(sorted(found.text(node.id))) for node in found.nodes() if node.duplicate_of is None}
    kept = [node for node in found.nodes() if node.duplicate_of is None and not node.terminal]
    assert len({"".join(sorted(found.text(node.id))) for node in kept}) == len(kept), "a state was expanded twice"
    assert {"abx", "acx", "bcx"} <= texts


def test_without_any_reward_the_prior_decides(search, scripted_model):
    class Silent(scripted_model):
        def reward(self, path):
            return None

    model = Silent(draws={"": "aab", "a": "pqrs", "b": "pqrs"})
    found = search("mcts", model, options={"leaf_batch": 1, "widen": 1, "simulations": 3})
    assert [node.id for node in found.nodes()] == ["0.0", "0.0.0", "0.1", "0.0.1", "0.2", "0.2.0"]
