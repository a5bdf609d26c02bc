"""The allocator against a plain model: a dict of token lists, and every token's value really stored in the cache."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from frtool.kernels.allocator import OutOfBlocks, PhysicalKVAllocator

BLOCKS = 24


class AllocatorMachine(RuleBasedStateMachine):
    branches = Bundle("branches")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, list[int]] = {}
        self.next_token = 1
        self.peak = 0

    @rule(target=branches, block_size=st.sampled_from([1, 3, 4]), tokens=st.integers(0, 20))
    def start(self, block_size: int, tokens: int):
        if not hasattr(self, "pool"):
            self.pool = PhysicalKVAllocator(BLOCKS, block_size, num_kv_heads=1, head_dim=1, num_layers=2)
        return self.allocate(tokens, None, None)

    @rule(target=branches, parent=branches, position=st.integers(0, 30), tokens=st.integers(0, 12))
    def grow_a_child(self, parent: int, position: int, tokens: int):
        position = min(position, len(self.model[parent]))
        return self.allocate(position + tokens, parent, position)

    @rule(target=branches, parent=branches, position=st.none() | st.integers(0, 30))
    def fork(self, parent: int, position: int | None):
        length = len(self.model[parent])
        position = None if position is None else min(position, length)
        free = self.pool.free_blocks
        child = self.pool.fork(parent, position)
        assert self.pool.free_blocks == free
        self.model[child.branch_id] = self.model[parent][:position]
        assert child.length == len(self.model[child.branch_id])
        return child.branch_id

    @rule(branch=branches, tokens=st.integers(1, 9))
    def append(self, branch: int, tokens: int) -> None:
        self.grow([branch], [tokens], lambda: self.pool.append(branch, tokens))

    @rule(data=st.data())
    def append_many(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True)) if self.model else []
        counts = data.draw(st.lists(st.integers(1, 6), min_size=len(chosen), max_size=len(chosen)))
        if chosen:
            self.grow(chosen, counts, lambda: self.pool.append_many(chosen, counts))

    @rule(branch=consumes(branches))
    def free(self, branch: int) -> None:
        self.pool.free_branch(branch)
        del self.model[branch]

    @invariant()
    def counts_and_contents_agree_with_the_model(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert set(self.pool.branch_ids) == set(self.model)
        for branch, tokens in self.model.items():
            slots = torch.from_numpy(self.pool.slots(branch))
            for layer in range(2):
                assert self.pool.k_cache[layer].flatten()[slots].int().tolist() == tokens
                assert self.pool.v_cache[layer].flatten()[slots].int().tolist() == [-t for t in tokens]
        stats = self.pool.stats()
        fill: dict[int, int] = {}
        for branch, tokens in self.model.items():
            for index, block in enumerate(self.pool.block_table(branch).tolist()):
                held = min(len(tokens) - index * self.pool.block_size, self.pool.block_size)
                fill[block] = max(fill.get(block, 0), held)
        self.peak = max(self.peak, len(fill))
        assert stats.blocks_used == len(fill) == BLOCKS - self.pool.free_blocks
        assert stats.physical_tokens == sum(fill.values())
        assert stats.logical_tokens == sum(map(len, self.model.values()))
        assert stats.peak_blocks == self.peak

    def allocate(self, tokens: int, parent: int | None, position: int | None):
        before = self.pool.stats()
        kept = [] if parent is None else self.model[parent][:position]
        blocks = -(-tokens // self.pool.block_size)
        needed = blocks - len(kept) // self.pool.block_size if tokens > len(kept) else 0
        if needed > self.pool.free_blocks:
            with pytest.raises(OutOfBlocks) as caught:
                self.pool.alloc_branch(tokens, parent, position)
            assert (caught.value.needed, caught.value.free) == (needed, self.pool.free_blocks)
            assert self.pool.stats() == before
            return multiple()
        branch = self.pool.alloc_branch(tokens, parent, position).branch_id
        assert self.pool.stats().blocks_used == before.blocks_used + needed
        self.model[branch] = list(kept)
        self.write(branch, tokens - len(kept))
        return branch

    def grow(self, branches: list[int], counts: list[int], act) -> None:
        before = self.pool.stats()
        needed = self.pool.blocks_needed(branches, counts)
        if needed > self.pool.free_blocks:
            with pytest.raises(OutOfBlocks) as caught:
                act()
            assert (caught.value.needed, caught.value.free) == (needed, self.pool.free_blocks)
            assert self.pool.stats() == before
            return
        act()
        assert self.pool.stats().blocks_used == before.blocks_used + needed
        for branch, count in zip(branches, counts, strict=True):
            self.write(branch, count)

    def write(self, branch: int, count: int) -> None:
        tokens = list(range(self.next_token, self.next_token + count))
        self.next_token += count
        start = len(self.model[branch])
        self.model[branch] += tokens
        slots = torch.from_numpy(self.pool.slots(branch, start))
        values = torch.tensor(tokens, dtype=torch.float32).view(-1, 1, 1)
        for layer in range(2):
            self.pool.write(layer, slots, values, -values)


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
