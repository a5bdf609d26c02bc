"""The option table: what is accepted, what is refused and in which words."""

from __future__ import annotations

import inspect
import math

import pytest

from frtool.search.budget import Budget
from frtool.search.registry import ALGORITHMS, CLASSES, OptionError, make_algorithm, resolve_options


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_made_from_its_defaults(name):
    algorithm = make_algorithm(name)
    assert algorithm.name == name
    assert all(getattr(algorithm, key) == known.default for key, known in ALGORITHMS[name].items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_option_is_described_and_every_algorithm_names_its_method(name):
    assert all(known.help and known.type in (int, float, str, bool) for known in ALGORITHMS[name].values())
    assert inspect.getdoc(CLASSES[name])


def test_values_may_be_text_and_names_may_have_hyphens():
    algorithm = make_algorithm("mcts", {"leaf-batch": "3", "c_puct": "2", "simulations": None})
    assert (algorithm.leaf_batch, algorithm.c_puct, algorithm.simulations) == (3, 2.0, None)


def test_an_unknown_algorithm_is_refused_with_the_names_that_exist():
    with pytest.raises(OptionError, match=r"unknown algorithm 'dfs'.*best-of-n.*mcts") as error:
        make_algorithm("dfs")
    assert error.value.option == "algorithm"


def test_an_option_of_another_algorithm_is_refused_with_the_valid_ones():
    with pytest.raises(OptionError, match=r"best-of-n does not use the option 'width'; it uses n, aggregate") as error:
        make_algorithm("best-of-n", {"width": 4})
    assert error.value.option == "width"
    with pytest.raises(OptionError, match="it has no options"):
        make_algorithm("greedy", {"n": 4})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("best-of-n", {"n": 0}, "n must be at least 1, not 0"),
        ("best-of-n", {"n": "-3"}, "n must be at least 1, not '-3'"),
        ("best-of-n", {"n": 2.5}, "n must be a whole number"),
        ("best-of-n", {"n": "many"}, "n must be a number, not 'many'"),
        ("best-of-n", {"n": True}, "n must be a number"),
        ("best-of-n", {"vote": "loudest"}, "vote must be one of best, weighted"),
        ("best-of-n", {"vote": 3}, "vote must be text"),
        ("mcts", {"accept": 1.5}, "accept must be between 0 and 1"),
        ("mcts", {"c_puct": "nan"}, "c_puct must be a finite number"),
        ("mcts", {"c_puct": "inf"}, "c_puct must be a finite number"),
        ("beam", {"width": 4, "keep": 5}, "keep 5 is more than the 4 children"),
        ("beam", {"width": 8, "keep": 4, "expand": 3}, "4 beams of 3 children are more than width 8"),
    ],
)
def test_bad_values_are_refused_in_words(name, options, message):
    with pytest.raises(OptionError, match=message) as error:
        make_algorithm(name, options)
    assert error.value.option in options


def test_resolved_options_hold_every_option_of_the_algorithm():
    resolved = resolve_options("beam", {"width": "32"})
    assert resolved["width"] == 32
    assert set(resolved) == set(ALGORITHMS["beam"])


def test_the_seed_of_the_run_is_that_of_the_draws_unless_one_is_given():
    assert resolve_options("ab-mcts", {}, seed=7)["seed"] == 7
    assert resolve_options("ab-mcts", {"seed": "3"}, seed=7)["seed"] == 3
    assert "seed" not in resolve_options("best-of-n", {}, seed=7)


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["tokens", "nodes", "seconds", "steps"])
def test_a_budget_that_allows_nothing_or_says_nothing_is_refused(name, limit):
    with pytest.raises(OptionError, match=name):
        Budget(**{name: limit})
