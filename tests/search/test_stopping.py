"""Every algorithm says why it is done."""

from __future__ import annotations

import pytest

from frtool.search.protocols import Step
from frtool.search.registry import ALGORITHMS, make_algorithm
from frtool.search.tree import SearchTree

REASONS = [
    ("greedy", {}, "finished"),
    ("best-of-n", {"n": 3}, "finished"),
    ("self-consistency", {"n": 3}, "finished"),
    ("self-consistency", {"n": 30, "converge": 0.9}, "converged"),
    ("beam", {"width": 2, "keep": 1}, "finished"),
    ("beam", {"width": 2, "keep": 1, "lookahead": 1}, "finished"),
    ("dvts", {"width": 2, "expand": 1}, "finished"),
    ("rebase", {"width": 2}, "finished"),
    ("best-first", {"answers": 1}, "answers"),
    ("mcts", {"simulations": 2}, "simulations"),
    ("mcts", {"accept": 0.5}, "accepted"),
    ("ab-mcts", {"simulations": 2}, "simulations"),
    ("ab-mcts", {"accept": 0.5}, "accepted"),
    ("gumbel", {"simulations": 2, "considered": 2}, "finished"),
]


@pytest.mark.parametrize(("name", "options", "reason"), REASONS)
def test_done_is_the_reason(name, options, reason):
    algorithm, tree = make_algorithm(name, options), SearchTree()
    while not algorithm.done(tree):
        asked = algorithm.ask(tree, 1)
        assert asked, "it waits for nothing"
        for expand in asked:
            text = f"{expand.ordinal}"
            step = Step(expand.parent, expand.ordinal, text, 1, -3.0, "end" if "." in expand.parent else "step", 0.75)
            node, _ = tree.make(step)
            node.reward = step.reward
            if step.finish == "end":
                node.terminal, node.answer = "end", "same"
            tree.attach(node)
            algorithm.tell(tree, expand, node)
    assert algorithm.done(tree) == reason


def test_no_algorithm_is_left_out():
    assert {name for name, _, _ in REASONS} == set(ALGORITHMS)
