"""Gumbel search: the halving by hand, the noise, the choice inside the tree, and the oracle."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from frtool.search import gumbel
from frtool.search.budget import Budget
from frtool.search.events import Pruned
from frtool.search.gumbel import Gumbel, perturbed
from frtool.search.noise import Stream
from frtool.search.protocols import Step
from frtool.search.tree import SearchTree

DRAWS = {"": "abcd"} | dict.fromkeys("abcd", "wxyz")
REWARDS = {"a": 0.5, "aw": 0.3, "b": 0.6, "bw": 0.6, "bx": 0.1, "by": 0.1}
REWARDS |= {"c": 0.2, "cw": 0.9, "cx": 0.8, "cy": 0.7, "cz": 0.0, "d": 0.1, "dw": 0.1}


def test_hand_computed_halving(search, scripted_model, monkeypatch):
    monkeypatch.setattr(gumbel, "perturbed", lambda node, stream: dict.fromkeys(node.children, 0.0))
    options = {"considered": 4, "simulations": 8, "oversample": 1, "leaf_batch": 1}
    found = search("gumbel", scripted_model(draws=DRAWS, rewards=REWARDS), options=options)
    assert [node.id for node in found.nodes()] == [
        *("0.0", "0.1", "0.2", "0.3"),  # log2 4 = 2 rounds
        *("0.0.0", "0.1.0", "0.2.0", "0.3.0"),  # 8 / (2 · 4) = 1 simulation each: Q = .4 .6 .55 .1, so b and c stay
        *("0.1.1", "0.2.1", "0.1.2", "0.2.2"),  # 8 / (2 · 2) = 2 each: Q = .35 for b, .65 for c, so c is taken
        "0.2.3",  # three of its four children are there already; all are finished, so the best is taken
    ]
    assert [event for event in found.events if isinstance(event, Pruned)] == [
        Pruned(["0.0", "0.3"], "halving"),
        Pruned(["0.1"], "halving"),
    ]
    assert (found.end.reason, found.end.answer) == ("finished", "cw")


def test_the_noise_is_gumbel_around_the_log_probability_given_the_order():
    odds = {"a": 0.6, "b": 0.3, "c": 0.1}
    rng, seen = random.Random(3), {name: [] for name in odds}
    for trial in range(4000):
        names, tree = list(odds), SearchTree()
        while names:  # distinct samples, in the order in which they come
            name = rng.choices(names, [odds[name] for name in names])[0]
            names.remove(name)
            node, _ = tree.make(Step("0", tree.want(tree.root).ordinal, name, 1, math.log(odds[name]), "step"))
            tree.attach(node)
        noise = perturbed(tree.root, Stream(7, str(trial)))
        assert list(noise.values()) == sorted(noise.values(), reverse=True)
        for node, g in noise.items():
            seen[node.text].append(g)
    for name, draws in seen.items():
        assert statistics.fmean(draws) == pytest.approx(math.log(odds[name]) + 0.5772, abs=0.08)
        assert statistics.stdev(draws) == pytest.approx(math.pi / math.sqrt(6), rel=0.06)


def test_inside_the_tree_it_follows_the_child_that_lacks_most_of_the_improved_policy():
    tree = SearchTree()
    for ordinal, (logprob, reward, visits, total) in enumerate([(-1.0, 0.5, 3, 1.2), (-2.0, 0.8, 1, 0.7)]):
        tree.want(tree.root)
        node, _ = tree.make(Step("0", ordinal, str(ordinal), 2, logprob, "step"))
        node.reward, node.visits, node.total = reward, visits, total
        tree.attach(node)
    algorithm = Gumbel(c_visit=1, c_scale=0.5)
    algorithm._see(0.0)
    algorithm._see(1.0)
    # sigma = (1 + 3) · .5 · Q: logits -.5 + 2 · 1.7 / 4 = .35 and -1 + 2 · 1.5 / 2 = .5; shares .463 and .537
    # less 3 / 5 and 1 / 5: the second
    assert algorithm._select(tree.root) is tree["0.1"]
    tree["0.1"].virtual = 5  # shares .25 and .75, since sigma grows to 3.5; less 3 / 10 and 6 / 10: still the second
    assert algorithm._select(tree.root) is tree["0.1"]
    tree["0.1"].virtual = 30  # sigma 16: shares .04 and .96, less 3 / 35 and 31 / 35
    tree["0.0"].visits = 0  # the first has its reward alone: .5, and 0 / 32 of the visits
    assert algorithm._select(tree.root) is tree["0.0"]


@pytest.mark.parametrize("seed", range(4))
def test_with_simulations_enough_it_sees_the_whole_tree_and_finds_the_best(search, fake_model, seed):
    model = fake_model(branching=3, depth=3, seed=seed, early=0.2)
    options = {"considered": 3, "simulations": 600, "oversample": 50, "max_duplicates": 200, "seed": seed}
    found = search("gumbel", model, options=options, budget=Budget(steps=50000))
    assert {node.answer for node in found.nodes() if node.terminal} == set(model.paths())
    assert found.end.reward == max(model.reward(path) for path in model.paths())


def test_every_decision_narrows_the_tree_to_one_step(search, fake_model):
    model = fake_model(branching=9, depth=4)
    found = search("gumbel", model, options={"considered": 4, "simulations": 12}, budget=Budget(steps=5000))
    assert found.end.reason == "finished"
    halved = [event.ids for event in found.events if isinstance(event, Pruned) and event.reason == "halving"]
    pruned = {node for ids in halved for node in ids}
    roots = {node.id for node in found.added().values() if node.id.count(".") == 1 and not node.terminal}
    assert len(roots - pruned) == 1


def test_the_seed_decides_the_draws_and_the_capacity_does_not(search, fake_model):
    def tree(seed, capacity):
        model = fake_model(branching=9, depth=4, capacity=capacity, slowest=5)
        options = {"seed": seed, "c_scale": 0.01}
        found = search("gumbel", model, options=options, budget=Budget(steps=400))
        return [(node.id, node.text, node.duplicate_of) for node in found.nodes()]

    assert tree(1, 1) == tree(1, 3) == tree(1, 32)
    assert len({str(tree(seed, 4)) for seed in range(4)}) > 1
