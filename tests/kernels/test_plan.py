from __future__ import annotations

import random
from dataclasses import astuple

import numpy as np
import pytest
import torch

from frtool.kernels.allocator import PhysicalKVAllocator, UnknownBranch
from frtool.kernels.plan import TreePlan, plan_tree


def nodes_by_definition(plan: TreePlan) -> set[tuple]:
    """Maximal runs of blocks with the same holders, found one block at a time: holders, blocks, block above."""
    paths = [[b for b in row if b >= 0] for row in plan.tables.tolist()]
    holders: dict[int, set[int]] = {}
    for row, path in enumerate(paths):
        for block in path:
            holders.setdefault(block, set()).add(row)
    found = set()
    for path in paths:
        start = 0
        while start < len(path):
            stop = start
            while stop < len(path) and holders[path[stop]] == holders[path[start]]:
                stop += 1
            above = path[start - 1] if start else -1
            found.add((frozenset(holders[path[start]]), start, tuple(path[start:stop]), above))
            start = stop
    return found


def nodes_of(plan: TreePlan) -> set[tuple]:
    found = []
    spans = list(
        zip(
            plan.node_start.tolist(), plan.node_stop.tolist(), plan.node_lo.tolist(), plan.node_hi.tolist(), strict=True
        )
    )
    for i, (start, stop, lo, hi) in enumerate(spans):
        rows = plan.order[lo:hi]
        blocks = plan.tables[rows, start:stop]
        assert (blocks == blocks[0]).all()
        parents = [p for p in spans[:i] if p[1] == start and p[2] <= lo and hi <= p[3]]
        assert len(parents) == (start > 0), "a parent comes before its children"
        above = int(plan.tables[plan.order[lo], start - 1]) if start else -1
        found.append((frozenset(rows.tolist()), int(start), tuple(blocks[0].tolist()), above))
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("seed", range(25))
def test_nodes_are_the_maximal_runs_of_blocks_with_the_same_holders(random_forest, seed, block_size):
    forest = random_forest(seed, block_size=block_size, kv_heads=1, head_dim=1, most_queries=3, longest=60)
    plan = plan_tree(forest.allocator, forest.branch_ids, forest.q_lens)
    assert nodes_of(plan) == nodes_by_definition(plan)
    assert sorted(plan.order.tolist()) == list(range(len(forest.branch_ids)))
    for name in ("q_lens", "q_start", "lengths", "tables", "order", "node_start", "node_stop", "node_lo", "node_hi"):
        assert getattr(plan, name).dtype == np.int32


def test_a_prompt_and_its_continuations_are_one_node_and_one_each():
    allocator = PhysicalKVAllocator(100, 16, 1, 1)
    root = allocator.alloc_branch(64).branch_id
    branches = [allocator.alloc_branch(96, parent_branch_id=root).branch_id for _ in range(3)]
    plan = plan_tree(allocator, branches)
    assert plan.branch_ids == tuple(branches)
    assert plan.node_start.tolist() == [0, 4, 4, 4]
    assert plan.node_stop.tolist() == [4, 6, 6, 6]
    assert plan.node_hi.tolist() == [3, 1, 2, 3]
    assert plan.order.tolist() == [0, 1, 2]


def test_the_order_depends_on_the_sharing_and_not_on_where_blocks_lie():
    def order(fill_first: bool) -> list[int]:
        allocator = PhysicalKVAllocator(100, 4, 1, 1)
        holes = [allocator.alloc_branch(4).branch_id for _ in range(20)]
        if fill_first:
            for hole in holes[::3]:
                allocator.free_branch(hole)
        left, right = (allocator.alloc_branch(8).branch_id for _ in range(2))
        ids = [allocator.alloc_branch(16, parent_branch_id=p).branch_id for p in (left, right, left, right, left)]
        return plan_tree(allocator, ids).order.tolist()

    assert order(False) == order(True) == [0, 2, 4, 1, 3]


def test_branches_are_named_by_whole_numbers_of_any_kind():
    for kind in (list, np.array, torch.tensor):
        allocator = PhysicalKVAllocator(10, 4, 1, 1)
        ids = [allocator.alloc_branch(9).branch_id for _ in range(2)]
        assert plan_tree(allocator, kind(ids)).branch_ids == (0, 1)
    with pytest.raises(TypeError, match="float"):
        plan_tree(allocator, [float(ids[0])])


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_that_follows_another_is_the_one_that_would_be_found_anew(random_forest, seed):
    forest = random_forest(seed, block_size=4, kv_heads=1, head_dim=1, longest=40)
    pool, ids, rng = forest.allocator, forest.branch_ids, random.Random(seed)
    kept = 0
    for _ in range(40):
        act = rng.random()
        if act < 0.6:
            pool.append_many(ids, [1] * len(ids))
        elif act < 0.8:
            pool.append(rng.choice(ids), 5)
        elif act < 0.9:
            ids.append(pool.fork(rng.choice(ids)).branch_id)
        elif len(ids) > 1:
            pool.free_branch(ids.pop(rng.randrange(len(ids))))
        kept += pool.kept(ids) is not None
        follower = plan_tree(pool, ids)
        pool.keep(ids, None)
        for mine, anew in zip(astuple(follower), astuple(plan_tree(pool, ids)), strict=True):
            assert np.array_equal(mine, anew)
    assert kept > 5


def test_queries_are_the_last_tokens_of_their_branch():
    allocator = PhysicalKVAllocator(10, 4, 1, 1)
    ids = [allocator.alloc_branch(n).branch_id for n in (9, 3)]
    plan = plan_tree(allocator, ids, [4, 2])
    assert plan.num_queries == 6
    assert plan.q_start.tolist() == [0, 4, 6]
    assert plan.lengths.tolist() == [9, 3]
    assert plan.query_positions().tolist() == [5, 6, 7, 8, 1, 2]
    assert plan_tree(allocator, ids).q_lens.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("ids", "q_lens", "message"),
    [
        ([], None, "at least one branch"),
        ([0, 0], None, "listed twice"),
        ([0, 1], [1], "2 branches but 1 query counts"),
        ([0, 1], [1, 4], "branch 1 of 3 tokens cannot have 4 query tokens"),
        ([0, 1], [0, 1], "branch 0 of 9 tokens cannot have 0 query tokens"),
        ([2], None, "branch 2 of 0 tokens cannot have 1 query tokens"),
    ],
)
def test_impossible_queries_are_refused(ids, q_lens, message):
    allocator = PhysicalKVAllocator(10, 4, 1, 1)
    for tokens in (9, 3, 0):
        allocator.alloc_branch(tokens)
    with pytest.raises(ValueError, match=message):
        plan_tree(allocator, ids, q_lens)


def test_an_unknown_branch_cannot_be_planned():
    with pytest.raises(UnknownBranch):
        plan_tree(PhysicalKVAllocator(10, 4, 1, 1), [3])
