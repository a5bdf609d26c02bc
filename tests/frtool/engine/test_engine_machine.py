"""Allocator, engine and search trees together, in any order of what can happen to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from frtool.engine import EngineOptions
from frtool.engine.forest import Forest
from frtool.engine.root import Root
from frtool.search.closing import prune
from frtool.search.protocols import Expand, OutOfMemory, Step
from frtool.search.tree import Node, SearchTree

PROMPTS = ("make 24 from 4 5\n", "make 24 from 9 9\n", "reach 7\n")
BLOCKS = 34
_OPTIONS: dict[str, Any] = {"delimiter": "e", "max_step_tokens": 6, "block_size": 4, "prefill_chunk": 5}


class Alone:
    """The steps of one prompt, each grown by itself in a pool that never runs short."""

    def __init__(self, loaded: Any, prompt: str) -> None:
        forest = Forest(loaded, EngineOptions(batch=1, num_blocks=4000, **_OPTIONS))
        self.root = Root(forest, loaded.tokenizer(prompt)["input_ids"])
        self.steps: dict[str, Step] = {}

    def step(self, expand: Expand) -> Step:
        if expand.id not in self.steps:
            if expand.parent != "0" and expand.parent not in self.root.holdings.kept:
                raise AssertionError(f"{expand.parent} was never kept")
            self.root.submit(expand)
            found: list[Step] = []
            while not found:
                self.root.forest.poll()
                found = self.root.poll()
            self.root.keep(found[0])
            self.steps[expand.id] = found[0]
        return self.steps[expand.id]


class Plant:
    """A root under test with its tree."""

    def __init__(self, forest: Forest, loaded: Any, prompt: str, alone: Alone) -> None:
        self.root = Root(forest, loaded.tokenizer(prompt)["input_ids"])
        self.alone = alone
        self.tree = SearchTree()
        self.held: dict[str, Node] = {}
        self.finished: list[Step] = []

    @property
    def open(self) -> list[Node]:
        return [self.tree.root, *(node for node in self.held.values() if node.state == "open")]


class EngineMachine(RuleBasedStateMachine):
    loaded: Any
    alone: dict[str, Alone]

    def __init__(self) -> None:
        super().__init__()
        self.forest = Forest(
            self.loaded, EngineOptions(batch=4, num_blocks=BLOCKS, swap_space=1 << 14, read_rewards=True, **_OPTIONS)
        )
        self.plants: list[Plant] = []

    def plant(self, data: st.DataObject) -> Plant:
        return data.draw(st.sampled_from(self.plants))

    @precondition(lambda self: len(self.plants) < 3)
    @rule(prompt=st.sampled_from(PROMPTS))
    def join(self, prompt: str) -> None:
        try:
            self.plants.append(Plant(self.forest, self.loaded, prompt, self.alone[prompt]))
        except OutOfMemory:
            assert self.plants

    @precondition(lambda self: len(self.plants) == 3)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        plant = self.plant(data)
        plant.root.close()
        self.plants.remove(plant)

    @precondition(lambda self: self.plants)
    @rule(data=st.data(), count=st.integers(1, 4))
    def fork(self, data: st.DataObject, count: int) -> None:
        plant = self.plant(data)
        node = data.draw(st.sampled_from(plant.open))
        for _ in range(count):
            plant.root.submit(plant.tree.want(node))

    @precondition(lambda self: self.plants)
    @rule(polls=st.integers(1, 9))
    def append(self, polls: int) -> None:
        for _ in range(polls):
            try:
                self.forest.poll()
            except OutOfMemory:
                return
        for plant in self.plants:
            plant.finished += plant.root.poll()

    @precondition(lambda self: any(plant.finished for plant in self.plants))
    @rule(data=st.data(), wanted=st.booleans())
    def settle(self, data: st.DataObject, wanted: bool) -> None:
        plant = data.draw(st.sampled_from([plant for plant in self.plants if plant.finished]))
        self.take(plant, data.draw(st.integers(0, len(plant.finished) - 1)), wanted)

    @precondition(lambda self: any(plant.held for plant in self.plants))
    @rule(data=st.data(), count=st.integers(1, 5))
    def deepen(self, data: st.DataObject, count: int) -> None:
        """Let the deepest open node have children, and wait for all that is under way."""
        plant = self.plant(data)
        node = max(plant.open, key=lambda at: at.depth)
        for _ in range(count):
            plant.root.submit(plant.tree.want(node))
        self.append(12)
        while plant.finished:
            self.take(plant, 0, True)

    def take(self, plant: Plant, place: int, wanted: bool) -> None:
        step = plant.finished.pop(place)
        alone = plant.alone.step(Expand(step.parent, step.ordinal))
        assert (step.text, step.ids, step.finish) == (alone.text, alone.ids, alone.finish)
        assert step.logprob == pytest.approx(alone.logprob, abs=0)
        expand = Expand(step.parent, step.ordinal)
        if not wanted:
            plant.root.drop(step)
            plant.tree.repeat(expand, plant.tree[step.parent])
            return
        plant.root.keep(step)
        node, _ = plant.tree.make(step)
        node.terminal = None if step.finish == "step" else step.finish
        plant.tree.attach(node)
        plant.held[node.id] = node

    @precondition(lambda self: any(plant.held for plant in self.plants))
    @rule(data=st.data())
    def prune(self, data: st.DataObject) -> None:
        plant = data.draw(st.sampled_from([plant for plant in self.plants if plant.held]))
        node = data.draw(st.sampled_from(list(plant.held.values())[::-1]))
        below = [at for at in plant.held.values() if node in at.path()]
        if any(at.pending for at in below):
            return
        if node.state == "open":
            prune(plant.tree, node, "test")
        for at in below:
            plant.root.release(at.id)
            del plant.held[at.id]

    @precondition(lambda self: self.plants)
    @rule(blocks=st.integers(1, BLOCKS))
    def evict(self, blocks: int) -> None:
        self.forest.evict(blocks)

    @precondition(lambda self: any(plant.held for plant in self.plants))
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        """Forget a node and hold it again as a resumed search would."""
        plant = data.draw(st.sampled_from([plant for plant in self.plants if plant.held]))
        node = data.draw(st.sampled_from(list(plant.held.values())))
        parent = node.parent
        assert parent is not None
        if node.pending or (parent.parent is not None and parent.id not in plant.held):
            return
        if any(child.id in plant.held for child in node.children):
            return
        plant.root.release(node.id)
        plant.root.restore(plant.alone.steps[node.id])

    @precondition(lambda self: any(plant.root.outstanding > 6 for plant in self.plants))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        plant = self.plant(data)
        plant.finished += plant.root.poll()
        plant.root.cancel()
        for node in plant.open:
            node.pending = sum(step.parent == node.id for step in plant.finished)

    @invariant()
    def counts_agree(self) -> None:
        allocator = self.forest.allocator
        allocator.check()
        holders: list[Any] = []
        for plant in self.plants:
            assert set(plant.root.holdings.kept) == {"0", *plant.held}
            holdings = plant.root.holdings
            holders += [*holdings.kept.values(), *holdings.done.values(), *plant.root.open.values()]
        branches = [holder.branch_id for holder in holders if holder.branch_id is not None]
        assert sorted(branches) == sorted(allocator.branch_ids)
        used = set(np.concatenate([allocator.block_table(b) for b in branches]).tolist()) if branches else set()
        assert allocator.free_blocks == BLOCKS - len(used)

    def teardown(self) -> None:
        for plant in self.plants:
            plant.root.close()
        self.forest.allocator.check()
        assert self.forest.allocator.free_blocks == BLOCKS


@pytest.fixture(scope="module")
def machine(tiny: Any) -> type[EngineMachine]:
    EngineMachine.loaded = tiny
    EngineMachine.alone = {prompt: Alone(tiny, prompt) for prompt in PROMPTS}
    return EngineMachine


_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_a_few_hundred_steps(machine):
    options = settings(max_examples=8, stateful_step_count=40, deadline=None, suppress_health_check=_CHECKS)
    run_state_machine_as_test(machine, settings=options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_steps(machine):
    options = settings(max_examples=100, stateful_step_count=100, deadline=None, suppress_health_check=_CHECKS)
    run_state_machine_as_test(machine, settings=options)
