"""Items of the specialized kernel: every key that a query may see is read for it once, whatever the tree."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frtool.bench.attention_cases import build_case, shared_prompt_case
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.cost import CostRule
from frtool.kernels.launch import Launch
from frtool.kernels.plan import TreePlan, plan_tree
from frtool.kernels.schedule import Schedule
from frtool.kernels.specialized import (
    KEYS,
    PLAIN,
    WHOLE,
    SpecializedRule,
    entry_size,
    grown_specialized,
    schedule_specialized,
    tile_queries,
)
from frtool.kernels.tuning import shipped_config

ANY = SpecializedRule(132, least_shared=0.0, most_masked=1e9, others=1e9)
"""Takes every tree of which some tile shares a round."""


def forks_of_a_prompt(seed: int, block_size: int, least: int = 1) -> tuple[PhysicalKVAllocator, list[int]]:
    """Branches below a few long ones, forked anywhere, many of them near the end, with `least` to 50 tokens more."""
    rng = random.Random(seed)
    pool = PhysicalKVAllocator(2000, block_size, 1, 1)
    ids = [pool.alloc_branch(rng.randint(1, 700)).branch_id for _ in range(rng.randint(1, 2))]
    for _ in range(rng.choice([2, 20, 70])):
        parent = rng.choice(ids[: rng.choice([1, 2, 99])])
        length = pool.length(parent)
        position = rng.randint(max(1, length - rng.choice([0, 9, 700])), length)
        ids.append(pool.alloc_branch(position + rng.randint(least, 50), parent, position).branch_id)
    rng.shuffle(ids)
    return pool, ids


def reads(tree: TreePlan, schedule: Schedule, entry: int, group_pad: int) -> np.ndarray:
    """int `[T, slots]`: how often each query, by its row of q, is given each slot of the pool."""
    count = np.zeros((tree.num_queries, (int(tree.tables.max()) + 1) * tree.block_size), np.int64)
    step = KEYS // entry
    for item in schedule.items.tolist():
        first, shared, own, masked, lower, upper = item[:6]
        assert shared + own + lower + upper > 0
        for begin, ahead in ((first, item[16:24]), (masked, item[24:32])):
            blocks = schedule.entry_block[begin : begin + 2 * step].tolist()
            assert ahead[: len(blocks)] == blocks
        rows = [token - 1 for token in item[32:] if token]
        for local, row in enumerate(rows):
            half = local >= tile_queries(group_pad) // 2
            for at in range(first, first + shared * step):
                slot = int(schedule.entry_block[at]) * entry
                count[row, slot : slot + entry] += 1
            # Every other round behind the shared ones is its half's, and one stretch of the other ring.
            rounds = [first + (shared + 2 * i + half) * step for i in range(own)]
            rounds += [masked + (lower * half + i) * step for i in range(upper if half else lower)]
            for begin in rounds:
                plain, whole = (int(schedule.entry_mark[begin]) & flag > 0 for flag in (PLAIN, WHOLE))
                owned = []
                for at in range(begin, begin + step):
                    mark = int(schedule.entry_mark[at])
                    owned.append(mark & 255 <= local < (mark & 255) + (mark >> 8 & 255))
                    held = mark >> 16 & 0x1FFF
                    seen = held * owned[-1]
                    assert held == entry or not (whole or plain)
                    slot = int(schedule.entry_block[at]) * entry
                    count[row, slot : slot + seen] += 1
                assert not plain or len(set(owned)) == 1
    return count


def expected_reads(tree: TreePlan) -> np.ndarray:
    count = np.zeros((tree.num_queries, (int(tree.tables.max()) + 1) * tree.block_size), np.int64)
    for branch, length in enumerate(tree.lengths):
        seen = np.arange(length)
        count[branch, tree.tables[branch][seen // tree.block_size] * tree.block_size + seen % tree.block_size] = 1
    return count


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from([16, 32, 48, 64, 128]), st.sampled_from([2, 4, 8]), st.sampled_from([1, 8]),
    st.sampled_from([ANY, replace(ANY, multiprocessors=4), replace(ANY, item=0.1, merge=0.1)]),
)  # fmt: skip
def test_every_visible_key_is_read_once(
    seed: int, block_size: int, group_pad: int, heads: int, rule: SpecializedRule
) -> None:
    tree = plan_tree(*forks_of_a_prompt(seed, block_size))
    entry = entry_size(block_size)
    schedule = schedule_specialized(tree, entry, group_pad, heads, rule)
    if schedule is not None:
        assert np.array_equal(reads(tree, schedule, entry, group_pad), expected_reads(tree))


@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 10**6),
    st.sampled_from([ANY, replace(ANY, item=0.1, merge=0.1), replace(ANY, item=0.1, merge=0.1, multiprocessors=8)]),
)
def test_parts_of_a_tile_follow_each_other_and_have_slots_of_their_own(seed: int, rule: SpecializedRule) -> None:
    schedule = schedule_specialized(plan_tree(*forks_of_a_prompt(seed, 16)), 16, 4, 8, rule)
    if schedule is None:
        return
    slots = []
    next_part: dict[int, int] = {}
    have_room = 8 * max(len(schedule.items), 8) <= rule.multiprocessors
    for tile, part, parts, slot0, *merges in schedule.items[:, 6:12].tolist():
        assert part == next_part.get(tile, 0), "a last part waits for those before it, which must have been started"
        assert part < parts
        assert merges == [max(parts - 1 - have_room, 0), parts - 1]
        next_part[tile] = part + 1
        slots.append(slot0 + part)
        assert 2 * tile + 1 < schedule.num_groups
    assert sorted(slots) == list(range(schedule.num_slots))


def test_growth_inside_the_last_blocks_needs_no_new_schedule() -> None:
    pool, ids = forks_of_a_prompt(5, 32)
    tree = plan_tree(pool, ids)
    schedule = schedule_specialized(tree, 32, 4, 8, ANY)
    assert schedule is not None
    kept = 0
    for _ in range(12):
        pool.append_many(ids, [1] * len(ids))
        before, tree = tree, plan_tree(pool, ids)
        follower = grown_specialized(schedule, before, tree, 32)
        kept += follower is not None
        schedule = follower or schedule_specialized(tree, 32, 4, 8, ANY)
        assert schedule is not None
        assert np.array_equal(reads(tree, schedule, 32, 4), expected_reads(tree))
    assert 0 < kept < 12


def test_a_prompt_of_many_branches_fills_the_machine_once() -> None:
    pool, ids = build_case(
        shared_prompt_case(256, 2048, 64),
        kv_heads=1,
        head_dim=1,
        block_size=16,
        layers=1,
        device="cpu",
        dtype=torch.float32,
    )
    schedule = schedule_specialized(plan_tree(pool, ids), 16, 4, 8, SpecializedRule(132))
    assert schedule is not None
    assert len(schedule.items) * 8 <= 132
    assert set(schedule.items[:, 1]) == {16}
    assert set(schedule.items[:, 4] + schedule.items[:, 5]) == {16}


def test_masked_rounds_that_outnumber_shared_ones_are_spread_over_all_warps() -> None:
    pool, ids = build_case(
        shared_prompt_case(256, 512, 256), kv_heads=1, head_dim=1, block_size=16, layers=1, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip
    tree = plan_tree(pool, ids)
    schedule = schedule_specialized(tree, 16, 4, 8, ANY)
    assert schedule is not None
    assert np.array_equal(reads(tree, schedule, 16, 4), expected_reads(tree))
    _, shared, own, _, lower, upper = schedule.items[:, :6].T
    assert (own > 0).all()
    assert (abs(shared + own - lower - upper) <= 3).all()


def test_trees_that_share_little_or_ask_with_several_tokens_are_left_to_the_other_kernel(
    random_forest: Callable[..., Any],
) -> None:
    pool, ids = forks_of_a_prompt(5, 16)
    assert schedule_specialized(plan_tree(pool, ids), 16, 4, 8, ANY) is not None
    assert schedule_specialized(plan_tree(pool, ids), 16, 4, 8, replace(ANY, least_shared=1e9)) is None
    assert schedule_specialized(plan_tree(pool, ids), 16, 4, 8, replace(ANY, most_masked=0.0)) is None
    assert schedule_specialized(plan_tree(pool, ids), 16, 4, 8, replace(ANY, gain=1e9)) is None
    several = [min(2, pool.length(i)) for i in ids]
    assert schedule_specialized(plan_tree(pool, ids, several), 16, 4, 8, ANY) is None


def test_a_branch_that_ends_inside_an_entry_of_another_leaves_a_tree_to_the_other_kernel() -> None:
    pool = PhysicalKVAllocator(100, 16, 1, 1)
    prompt = pool.alloc_branch(300)
    ids = [prompt.branch_id, *(pool.alloc_branch(320, prompt.branch_id, 300).branch_id for _ in range(8))]
    tree = plan_tree(pool, ids)
    schedule = schedule_specialized(tree, 16, 4, 8, ANY)
    assert schedule is not None
    assert np.array_equal(reads(tree, schedule, 16, 4), expected_reads(tree))
    ids.append(pool.fork(prompt.branch_id, 294).branch_id)
    assert schedule_specialized(plan_tree(pool, ids), 16, 4, 8, ANY) is None


def test_graphs_go_stale_where_a_tree_changes_its_kernel() -> None:
    pool = PhysicalKVAllocator(600, 16, 2, 128, "cpu", 1, torch.float16)
    prompt = pool.alloc_branch(700)
    ids = [pool.alloc_branch(720 + i, prompt.branch_id, 700).branch_id for i in range(40)]
    whole, few = plan_tree(pool, ids), plan_tree(pool, ids[:1])
    config = shipped_config(torch.float16, 128, None)
    assert config is not None
    rule = replace(ANY, multiprocessors=4, least_shared=10.0, most_masked=3.0)
    launch = Launch(pool, 4, config, CostRule(4), None, rule)
    launch.load(whole)
    assert launch.specialized
    assert launch.partial.shape[1:] == (2, 128, 128)
    assert launch.load(whole)
    pool.append_many(ids, [1] * 40)
    assert launch.load(plan_tree(pool, ids)), "branches that grow inside their last blocks"
    several = plan_tree(pool, ids, [2] * 40)
    assert not launch.load(several)
    assert not launch.specialized
    assert launch.partial.shape[1:] == (2, 16, 128)
    assert not launch.load(few)
    assert launch.specialized
    assert not launch.load(several)


def test_a_tree_stays_until_it_has_lost_half_of_what_it_shares() -> None:
    pool, ids = forks_of_a_prompt(5, 16)
    tree = plan_tree(pool, ids)
    schedule = schedule_specialized(tree, 16, 4, 8, ANY)
    assert schedule is not None
    shared = int(schedule.items[:, 1].sum())
    rule = replace(ANY, least_shared=1.5 * shared / (schedule.items[:, 6].max() + 1))
    assert schedule_specialized(tree, 16, 4, 8, rule) is None
    assert schedule_specialized(tree, 16, 4, 8, rule, stays=True) is not None


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True), ({"dtype": torch.bfloat16}, True), ({"dtype": torch.float32}, False), ({"head_dim": 64}, False),
        ({"block_size": 8}, False), ({"group": 8}, False), ({"group": 1}, False), ({"capability": (10, 0)}, False),
        ({"interprets": True}, False), ({"version": "3.9.0"}, False),
    ],
)  # fmt: skip
def test_the_kernel_is_taken_only_where_it_can_run(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], can: bool
) -> None:
    from frtool.kernels import triton_tree

    case = {"dtype": torch.float16, "head_dim": 128, "block_size": 16, "group": 4, "capability": (9, 0)} | changes
    monkeypatch.setattr(triton_tree, "_capability", lambda _: case["capability"])
    monkeypatch.setattr(triton_tree, "interpreting", lambda: case.get("interprets", False))
    monkeypatch.setattr(triton_tree.triton, "__version__", case.get("version", "3.6.0"))
    kernel = SimpleNamespace(specialized_attention_kernel=object())
    monkeypatch.setitem(sys.modules, "frtool.kernels.specialized_kernel", kernel)
    triton_tree._specialized.cache_clear()
    pool = PhysicalKVAllocator(2, case["block_size"], 1, case["head_dim"], "cpu", 1, case["dtype"])
    assert triton_tree._can_specialize(pool, case["group"]) is can
    triton_tree._specialized.cache_clear()
