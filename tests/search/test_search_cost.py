"""Bookkeeping must not be what a search waits for."""

from __future__ import annotations

import math
import time

import pytest

from frtool.search.budget import Budget
from frtool.search.protocols import KVStats, Step
from frtool.search.registry import make_algorithm
from frtool.search.run import run_search

NODES = 10_000


class Instant:
    """A model of wide, deep trees whose own time is measured, to be taken off."""

    prompt_tokens = policy_tokens = scorer_tokens = 0
    capacity = 64

    def __init__(self):
        self.waiting = []
        self.seconds = 0.0

    def submit(self, expand):
        self.waiting.append(expand)

    @property
    def outstanding(self):
        return len(self.waiting)

    def poll(self):
        started = time.perf_counter()
        steps = [self.step(expand) for expand in self.waiting]
        self.waiting = []
        self.seconds += time.perf_counter() - started
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


@pytest.mark.parametrize(
    ("name", "options"), [("best-of-n", {"n": NODES}), ("beam", {"width": 4096, "keep": 1024}), ("mcts", {})]
)
def test_a_node_costs_less_than_three_tenths_of_a_millisecond(letters, name, options):
    fastest = math.inf
    for _ in range(2):
        model, started = Instant(), time.perf_counter()
        run = run_search(
            algorithm=make_algorithm(name, options),
            generator=model,
            scorer=None,
            task=letters,
            budget=Budget(nodes=NODES),
        )
        for event in run:
            end = event
        fastest = min(fastest, time.perf_counter() - started - model.seconds)
    assert end.nodes == NODES
    assert fastest / NODES < 0.3e-3
