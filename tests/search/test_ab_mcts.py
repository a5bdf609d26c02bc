"""AB-MCTS: the choices by hand, the posteriors, the draws, and the oracle."""

from __future__ import annotations

import math
import statistics

import pytest

from frtool.search.ab_mcts import ABMCTS, Arm
from frtool.search.budget import Budget
from frtool.search.noise import Stream
from frtool.search.registry import OptionError, make_algorithm


class ByMean(ABMCTS):
    """Takes the posterior's mean in place of a draw."""

    def _draw(self, arm, stream):
        return (0.5 + arm.total) / (1 + arm.count)


DRAWS = {"": "abc", "a": "wxyz", "b": "xy", "c": "xy"}
REWARDS = {"a": 0.2, "aw": 0.9, "ax": 0.1, "ay": 0.1, "az": 0.1, "b": 0.6, "bx": 0.8, "c": 0.0, "cx": 0.5}


def test_hand_computed_choices(search, scripted_model):
    algorithm = ByMean(posterior="beta", leaf_batch=1, simulations=7)
    found = search(algorithm, scripted_model(draws=DRAWS, rewards=REWARDS))
    assert [node.id for node in found.nodes()] == [
        "0.0",  # nothing to go deeper into; then down to the end
        "0.0.0",
        "0.0.1",  # GEN saw .2: (.5 + .2) / 2 = .35; CONT saw .9: .7
        "0.0.2",  # CONT saw .9 .1: .5
        "0.0.3",  # CONT saw .9 .1 .1: .4
        "0.1",  # CONT saw .9 .1 .1 .1: .34
        "0.1.0",
        "0.2",  # GEN saw .2 .6: .433; CONT saw 2.0 in 5: .417
        "0.2.0",
        "0.1.1",  # GEN saw .8 in 3: .325; CONT 2.5 in 6: .429; a 1.4 in 5: .317, b 1.4 in 2: .633, c .5 in 2: .333
    ]
    assert (found.end.reason, found.end.answer) == ("simulations", "aw")


def test_without_rollout_every_new_step_ends_its_walk(search, scripted_model):
    algorithm = ByMean(posterior="beta", leaf_batch=1, simulations=4, rollout=False)
    found = search(algorithm, scripted_model(draws=DRAWS, rewards=REWARDS))
    # GEN saw .2: .35, CONT nothing yet: .5; then CONT saw .9: .7, and .9 .1: .5
    assert [node.id for node in found.nodes()] == ["0.0", "0.0.0", "0.0.1", "0.0.2"]


@pytest.mark.parametrize("values", [[], [0.3], [0.9, 0.7, 0.8, 1.0, 0.6, 0.7]])
def test_gaussian_draws_follow_the_student_posterior_of_the_mean(values):
    algorithm = ABMCTS(prior_mean=0.5, prior_variance=0.05)
    arm, stream, n = Arm(), Stream(0, "posterior"), len(values)
    for worth in values:
        arm.see(worth)
    draws = [algorithm._draw(arm, stream) for _ in range(4000)]
    mean = (0.5 + sum(values)) / (1 + n)
    average = statistics.fmean(values) if values else 0.5
    scatter = 0.05 + sum((v - average) ** 2 for v in values) + n * (average - 0.5) ** 2 / (1 + n)
    # Student's t of 1 + n degrees, scale sqrt(scatter) / (1 + n); its quartiles hold for 1 degree too
    quartile = {1: 1.0, 2: 0.8165, 7: 0.7111}[1 + n] * math.sqrt(scatter) / (1 + n)
    low, middle, high = statistics.quantiles(draws, n=4)
    assert middle == pytest.approx(mean, abs=0.1 * quartile)
    assert (high - low) / 2 == pytest.approx(quartile, rel=0.1)


def test_beta_draws_follow_the_posterior():
    algorithm = ABMCTS(posterior="beta", prior_a=1, prior_b=2)
    arm, stream = Arm(), Stream(0, "posterior")
    for worth in (0.9, 0.8, 0.3):
        arm.see(worth)
    draws = [algorithm._draw(arm, stream) for _ in range(4000)]  # Beta(3, 3)
    assert statistics.fmean(draws) == pytest.approx(0.5, abs=0.015)
    assert statistics.variance(draws) == pytest.approx(1 / 28, rel=0.1)


@pytest.mark.parametrize("posterior", ["gaussian", "beta"])
@pytest.mark.parametrize("seed", range(3))
def test_with_budget_enough_it_closes_the_tree_and_finds_the_best(search, fake_model, seed, posterior):
    model = fake_model(branching=3, depth=3, seed=seed, early=0.2)
    options = {"posterior": posterior, "max_duplicates": 200, "seed": seed}
    found = search("ab-mcts", model, options=options, budget=Budget(steps=50000))
    assert found.end.reason == "exhausted"
    assert {node.answer for node in found.nodes() if node.terminal} == set(model.paths())
    assert found.end.reward == max(model.reward(path) for path in model.paths())


def test_the_seed_decides_the_draws_and_the_capacity_does_not(search, fake_model):
    def tree(seed, capacity):
        model = fake_model(branching=9, depth=4, capacity=capacity, slowest=5)
        found = search("ab-mcts", model, options={"seed": seed}, budget=Budget(steps=150))
        return [(node.id, node.text, node.duplicate_of) for node in found.nodes()]

    assert tree(1, 1) == tree(1, 3) == tree(1, 32)
    assert len({str(tree(seed, 4)) for seed in range(4)}) == 4


def test_it_goes_on_with_good_steps_and_leaves_bad_ones(search, scripted_model):
    steps, ends = "bacdefghij", "rstuvwxyz"
    rewards = {step + end: 0.9 if step == "a" else 0.1 for step in steps for end in ("", *ends)}
    model = scripted_model(draws={"": steps} | dict.fromkeys(steps, ends), rewards=rewards)
    found = search("ab-mcts", model, options={"simulations": 20, "leaf_batch": 1})
    ends_found = [node.id for node in found.added().values() if node.terminal]
    assert sum(node.startswith("0.1.") for node in ends_found) == 9, "not every end of the good step was found"


@pytest.mark.parametrize(
    ("options", "wrong"), [({"prior_a": 1}, "prior_a"), ({"posterior": "beta", "prior_mean": 0.5}, "prior_mean")]
)
def test_a_prior_of_the_other_posterior_is_refused(options, wrong):
    with pytest.raises(OptionError, match=f"{wrong} means nothing with posterior") as error:
        make_algorithm("ab-mcts", options)
    assert error.value.option == wrong


def test_it_stops_at_an_accepted_value(search, scripted_model):
    model = scripted_model(draws={"": "abc"}, rewards={"a": 0.3, "b": 0.97, "c": 0.99})
    found = search("ab-mcts", model, options={"leaf_batch": 1, "accept": 0.95})
    assert (found.end.answer, found.end.terminals) == ("b", 2)
