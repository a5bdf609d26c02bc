"""Bookkeeping must not grow with the tree: calls are counted, because seconds depend on the machine."""

from __future__ import annotations

import math
import sys

import pytest

from frtool.search.budget import Budget
from frtool.search.protocols import KVStats, Step
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search


class Instant:
    """A model of wide, deep trees that answers at once."""

    prompt_tokens = policy_tokens = scorer_tokens = 0
    capacity = 64

    def __init__(self):
        self.waiting = []

    def submit(self, expand):
        self.waiting.append(expand)

    @property
    def outstanding(self):
        return len(self.waiting)

    def poll(self):
        steps = [self.step(expand) for expand in self.waiting]
        self.waiting = []
        return steps

    def step(self, expand):
        draw = hash((expand.parent.count("."), len(expand.parent), expand.ordinal)) % 1000
        finish = "end" if expand.parent.count(".") >= 4 else "step"
        return Step(expand.parent, expand.ordinal, f"step {draw}\n", 10, -math.log(1000), finish, draw / 1000)

    def keep(self, step):
        pass

    drop = release = keep

    def cancel(self):
        self.waiting = []

    def kv(self):
        return KVStats(0, 0, 0, 0, 0, 0, 0, 0, 0)


def calls_per_node(letters, name, options, nodes):
    """Calls of Python and built-in functions in a search of so many nodes, a node."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    run = run_search(
        algorithm=make_algorithm(name, options),
        generator=Instant(),
        scorer=None,
        task=letters,
        budget=Budget(nodes=nodes),
    )
    sys.setprofile(count)
    try:
        for event in run:
            end = event
    finally:
        sys.setprofile(None)
    assert end.nodes == nodes
    return calls / nodes


@pytest.mark.parametrize(
    ("name", "options"), [("best-of-n", {"n": 8000}), ("beam", {"width": 4096, "keep": 1024}), ("mcts", {})]
)
def test_a_node_of_a_large_tree_takes_no_more_calls_than_one_of_a_small_tree(letters, name, options):
    small = calls_per_node(letters, name, options, 1000)
    large = calls_per_node(letters, name, options, 8000)
    assert large < 1.5 * small
    assert large < 400
