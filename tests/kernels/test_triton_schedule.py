"""Work items: every key that a query may see is read for it once, whatever the tree and the cost rule."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frtool.bench.attention_cases import build_case, level_case
from frtool.kernels import schedule as module
from frtool.kernels.cost import CostRule, TileShape, fitted_rule, fitted_rule_apart, narrow_chunk
from frtool.kernels.plan import TreePlan, plan_tree
from frtool.kernels.schedule import MERGE, NARROW, WIDE, Schedule, grown, schedule_apart, schedule_tree

SHAPE = TileShape(group_queries=4, tile_groups=8, wide_keys=64, narrow_keys=64, entry=16)


def pool_of(nodes: tuple[int, ...], tokens: tuple[int, ...]) -> Any:
    """A pool that holds one tree, and its branches: of each level the nodes, and the tokens that each has."""
    return build_case(
        level_case("tree", nodes, tokens), kv_heads=1, head_dim=1, block_size=16, layers=1, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip


def reads(tree: TreePlan, shape: TileShape, schedule: Schedule) -> np.ndarray:
    """int `[T, slots]`: how often each query, by its row of q, is given each slot of the pool."""
    count = np.zeros((tree.num_queries, (int(tree.tables.max()) + 1) * tree.block_size), np.int64)
    attending = schedule.items[schedule.items[:, 0] != MERGE, :8]
    for kind, first, full, keys, group0, groups, low, high in attending.tolist():
        assert kind in (NARROW, WIDE)
        assert full <= keys
        assert groups <= (1 if kind == NARROW else shape.tile_groups)
        query0 = group0 * shape.group_queries
        for local in range(groups * shape.group_queries):
            query = query0 + local
            if query >= tree.num_queries:
                continue
            for at in range(keys):
                entry, offset = first + at // shape.entry, at % shape.entry
                meta = int(schedule.entry_mark[entry])
                position = (meta >> 32) + offset
                if at < full:
                    seen = low <= local < high
                else:
                    owned = meta & 255 <= local < (meta & 255) + (meta >> 8 & 255)
                    seen = owned and offset < (meta >> 16 & 0xFFFF) and position <= schedule.query_pos[query]
                slot = int(schedule.entry_block[entry]) * shape.entry + offset
                count[schedule.query_token[query], slot] += seen
    return count


def expected_reads(tree: TreePlan) -> np.ndarray:
    positions = tree.query_positions()
    count = np.zeros((tree.num_queries, (int(tree.tables.max()) + 1) * tree.block_size), np.int64)
    for branch in range(len(tree.branch_ids)):
        for token in range(tree.q_start[branch], tree.q_start[branch + 1]):
            seen = np.arange(positions[token] + 1)
            count[token, tree.tables[branch][seen // tree.block_size] * tree.block_size + seen % tree.block_size] = 1
    return count


rules = st.builds(
    CostRule,
    multiprocessors=st.sampled_from([1, 4, 132]),
    item=st.sampled_from([0.001, 3.0]),
    piece=st.sampled_from([0.001, 0.3]),
    narrow_key=st.sampled_from([0.014, 0.1]),
    own_run=st.sampled_from([16, 128]),
    wide_items=st.sampled_from([None, 3]),
    narrow_items=st.sampled_from([None, 2]),
)


SIZES = [(16, 16), (32, 16), (8, 8), (24, 24)]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from([1, 1, 5]), st.sampled_from(SIZES), rules)
def test_every_visible_key_is_read_once(
    random_forest: Callable[..., Any], seed: int, most_queries: int, sizes: tuple[int, int], rule: CostRule
) -> None:
    block_size, entry = sizes
    forest = random_forest(
        seed, block_size=block_size, steps=14, longest=90, most_queries=most_queries, kv_heads=1, head_dim=1
    )
    tree = plan_tree(forest.allocator, forest.branch_ids, forest.q_lens)
    shape = TileShape(4, 8, 64, 64, entry)
    schedule = schedule_tree(tree, shape, 2, rule)
    assert np.array_equal(reads(tree, shape, schedule), expected_reads(tree))


def test_shared_prompt_is_read_by_wide_items_and_tails_by_narrow_ones() -> None:
    tree = plan_tree(*pool_of((1, 256), (2048, 32)))
    schedule = schedule_tree(tree, SHAPE, 8, CostRule(132))
    kinds = schedule.items[:, 0]
    assert set(kinds) == {NARROW, WIDE, MERGE}
    assert schedule.items[kinds == WIDE, 3].sum() == 8 * 2048  # tiles of 32 queries
    assert schedule.items[kinds == NARROW, 3].sum() == 256 * 32


def test_shared_streams_are_split_until_they_fill_the_places_that_there_are() -> None:
    tree = plan_tree(*pool_of((1, 64), (2048, 32)))
    items = []
    for crowd in (1, 2):
        rule = CostRule(8, narrow_key=0.1, wide_merge=0.01, crowd=crowd)
        kinds = schedule_tree(tree, SHAPE, 1, rule).items[:, 0]
        items.append(np.count_nonzero(kinds == WIDE))
    assert items == [8, 16]


def test_tails_are_cut_for_idle_places_where_two_programs_do_not_slow_each_other() -> None:
    pieces = []
    for branches in (64, 128):  # of four heads of 64 keys a group: as many programs as there are multiprocessors, twice
        count = np.full(branches // 4, 16)
        for rule in (fitted_rule(4, 132), fitted_rule_apart(4, 132)):
            pieces.append(16 // narrow_chunk(count, 2, 16, 8, rule))
    assert pieces == [1, 2, 1, 1]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from([1, 4]), rules)
def test_parts_have_slots_of_their_own_and_one_item_merges_them(
    random_forest: Callable[..., Any], seed: int, merge_groups: int, rule: CostRule
) -> None:
    forest = random_forest(seed, steps=30, longest=120, kv_heads=1, head_dim=1)
    shape = TileShape(4, 8, 64, 64, 16, merge_groups)
    schedule = schedule_tree(plan_tree(forest.allocator, forest.branch_ids, forest.q_lens), shape, 2, rule)
    slots = [[] for _ in range(schedule.num_groups)]
    has_wide, merged = np.zeros((2, schedule.num_groups), bool)
    kinds = schedule.items[:, 0]
    assert (np.diff(kinds == MERGE) >= 0).all(), "merge items come after all that they wait for"
    for item in schedule.items:
        for place in range(item[5]):
            group, slot, first, parts = item[4] + place, *item[[8 + place, 16 + place, 24 + place]]
            if item[0] == MERGE:
                assert parts in (0, len(slots[group]))
                assert parts == 0 or (first == min(slots[group]) and not merged[group])
                merged[group] |= parts > 0
            else:
                slots[group].append(slot)
                has_wide[group] |= item[0] == WIDE
    everything = sorted(slot for group in slots for slot in group)
    assert everything == list(range(schedule.num_slots))
    in_parts = np.array([len(group) > 1 for group in slots])
    assert np.array_equal(merged, has_wide & in_parts)
    for item in schedule.items[kinds == NARROW]:
        assert item[6] == merged[item[4]]


def test_wide_items_come_first_where_they_have_a_launch_of_their_own() -> None:
    tree = plan_tree(*pool_of((1, 256), (2048, 64)))
    schedule = schedule_apart(tree, SHAPE, 8, CostRule(132))
    assert schedule is not None
    kinds = schedule.items[:, 0].tolist()
    assert kinds == sorted(kinds, key=[WIDE, NARROW, MERGE].index)
    assert np.array_equal(reads(tree, SHAPE, schedule), expected_reads(tree))


def test_wide_items_with_nothing_beside_them_stay_in_one_launch() -> None:
    tree = plan_tree(*pool_of((1, 256), (2048, 16)))
    assert schedule_apart(tree, SHAPE, 8, CostRule(132, masked_key=0.02)) is None


def test_without_sharing_there_are_no_wide_items_and_nothing_to_merge() -> None:
    tree = plan_tree(*pool_of((64,), (128,)))
    schedule = schedule_tree(tree, SHAPE, 32, CostRule(132))
    assert set(schedule.items[:, 0]) == {NARROW}
    assert schedule.num_slots == schedule.num_groups == 16


def test_one_long_branch_is_split_beside_short_ones() -> None:
    pool, ids = pool_of((255,), (64,))
    pool.append(ids[-1], 10)
    short = schedule_tree(plan_tree(pool, ids), SHAPE, 8, CostRule(132))
    from frtool.kernels.allocator import PhysicalKVAllocator

    longer = PhysicalKVAllocator(4096, 16, 1, 1)
    branches = [longer.alloc_branch(64).branch_id for _ in range(255)] + [longer.alloc_branch(32768).branch_id]
    schedule = schedule_tree(plan_tree(longer, branches), SHAPE, 8, CostRule(132))
    assert schedule.items[:, 3].max() < 32768 / 4
    assert len(schedule.items) > len(short.items)


@pytest.mark.parametrize(
    ("nodes", "tokens", "most_ms"), [((1, 256), (2048, 64), 3.0), ((1, 2, 4, 8, 16, 32, 64, 128, 1024), (16,) * 9, 8.0)]
)
def test_scheduling_takes_no_per_token_python(nodes: tuple[int, ...], tokens: tuple[int, ...], most_ms: float) -> None:
    """Bounds several times the time on an idle core, so that only another complexity breaks them."""
    tree = plan_tree(*pool_of(nodes, tokens))
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        schedule_tree(tree, SHAPE, 8, CostRule(132))
        times.append(time.perf_counter() - begin)
    assert min(times) < most_ms / 1e3


def test_growth_inside_the_last_blocks_needs_no_new_schedule(random_forest: Callable[..., Any]) -> None:
    forest = random_forest(4, block_size=32, steps=20, kv_heads=1, head_dim=1)
    pool, ids = forest.allocator, forest.branch_ids
    rule = CostRule(4, item=0.001, narrow_key=0.1)
    kept = 0
    tree = plan_tree(pool, ids)
    schedule = schedule_tree(tree, SHAPE, 1, rule)
    for _ in range(12):
        pool.append_many(ids, [1] * len(ids))
        before, tree = tree, plan_tree(pool, ids)
        follower = grown(schedule, before, tree, SHAPE.entry)
        kept += follower is not None
        schedule = follower or schedule_tree(tree, SHAPE, 1, rule)
        assert np.array_equal(reads(tree, SHAPE, schedule), expected_reads(tree))
    assert 0 < kept < 12


@pytest.mark.parametrize("make", [schedule_tree, schedule_apart])
@pytest.mark.parametrize("most_queries", [1, 3])
def test_what_is_kept_from_step_to_step_changes_no_schedule(
    random_forest: Callable[..., Any], most_queries: int, make: Callable[..., Schedule | None]
) -> None:
    caches = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
    forest = random_forest(7, steps=30, longest=120, most_queries=most_queries, kv_heads=1, head_dim=1)
    pool, ids = forest.allocator, forest.branch_ids
    rule = CostRule(4, item=0.001, narrow_key=0.1)
    for step in range(24):
        pool.append_many(ids, [1] * len(ids))
        if step % 8 == 7:
            pool.free_branch(ids.pop(0))
            forest.q_lens.pop(0)
        tree = plan_tree(pool, ids, forest.q_lens)
        kept = make(tree, SHAPE, 2, rule)
        for cached in caches:
            cached.cache_clear()
        anew = make(tree, SHAPE, 2, rule)
        assert (kept is None) == (anew is None)
        if kept is not None and anew is not None:
            assert all(np.array_equal(getattr(kept, f.name), getattr(anew, f.name)) for f in fields(Schedule))
        make(tree, SHAPE, 2, rule)
