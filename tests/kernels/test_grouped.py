"""The torch backend against the naive reference in fp64, and against itself in other company."""

from __future__ import annotations

import random

import pytest
import torch

from frtool.kernels import grouped_work
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import plan_attention, tree_attention
from frtool.kernels.grouped import GroupedPlan

OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.31},
    "window-1": {"window": 1},
    "window-63": {"window": 63},
    "window-100": {"window": 100},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": True},
    "uncapped": {"scale": 0.31, "window": 77, "sinks": True},
    "all": {"scale": 0.31, "window": 77, "softcap": 1.5, "sinks": True},
}


def options(name: str, heads: int) -> dict:
    chosen = dict(OPTIONS[name])
    if chosen.pop("sinks", False):
        chosen["sinks"] = torch.randn(heads)
    return chosen


def attend(forest, **settings) -> torch.Tensor:
    out = torch.full_like(forest.q, torch.nan)
    result = tree_attention(
        forest.q, forest.allocator, forest.branch_ids, q_lens=forest.q_lens, backend="torch", out=out, **settings
    )
    assert result is out
    return out


def assert_near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("most_queries", [1, 7, 150], ids=["decode", "scoring", "prefill"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_random_forest_equals_the_reference(random_forest, name, most_queries):
    for seed in range(2):
        forest = random_forest(seed, most_queries=most_queries)
        settings = options(name, forest.heads)
        assert_near(attend(forest, layer=1, **settings), forest.expected(layer=1, **settings), 2e-6)


@pytest.mark.parametrize(
    ("block_size", "kv_heads", "group", "head_dim"),
    [(1, 1, 1, 8), (3, 2, 3, 20), (16, 1, 8, 128), (24, 3, 5, 80), (64, 1, 7, 64), (100, 2, 1, 96), (256, 1, 4, 256)],
)
def test_odd_shapes_equal_the_reference(random_forest, block_size, kv_heads, group, head_dim):
    forest = random_forest(
        5, block_size=block_size, kv_heads=kv_heads, group=group, head_dim=head_dim, most_queries=4, steps=25
    )
    assert_near(attend(forest), forest.expected(), 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_caches_lose_only_the_rounding_of_the_output(random_forest, dtype, tolerance):
    forest = random_forest(3, dtype=dtype, most_queries=3)
    settings = options("all", forest.heads)
    got = attend(forest, **settings)
    assert got.dtype == dtype
    assert_near(got, forest.expected(**settings), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "uncapped", "all"])
@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 64), (4, 64), (7, 80), (2, 32)])
def test_a_result_is_the_same_bits_in_any_company(random_forest, group, head_dim, name, dtype):
    forest = random_forest(
        group, kv_heads=1, group=group, head_dim=head_dim, dtype=dtype, most_queries=9, steps=80, longest=150
    )
    if head_dim == 80 and grouped_work._row_counts(head_dim, torch.get_num_threads(), "cpu") == (32, 1):
        pytest.skip("products of this head dimension depend on their company on this processor")
    settings = options(name, forest.heads)
    whole = attend(forest, **settings)
    rng = random.Random(0)
    rows = list(range(len(forest.branch_ids)))
    for count in (1, 1, 2, 3, 5, 9, len(rows) // 2, len(rows)):
        ids, q_lens, tokens = forest.select(rng.sample(rows, count))
        part = tree_attention(forest.q[tokens], forest.allocator, ids, q_lens=q_lens, backend="torch", **settings)
        assert torch.equal(part, whole[tokens])


def test_a_token_is_the_same_bits_whether_prefilled_decoded_or_in_chunks(random_forest):
    forest = random_forest(1, most_queries=150, longest=300)
    settings = options("all", forest.heads)
    whole = attend(forest, **settings)
    last = torch.tensor(forest.q_lens).cumsum(0) - 1
    decoded = tree_attention(forest.q[last], forest.allocator, forest.branch_ids, **settings)
    assert torch.equal(decoded, whole[last])
    halves = [(n + 1) // 2 for n in forest.q_lens]
    chunk = torch.cat([torch.arange(end - n, end) for n, end in zip(halves, (last + 1).tolist(), strict=True)])
    chunked = tree_attention(forest.q[chunk], forest.allocator, forest.branch_ids, q_lens=halves, **settings)
    assert torch.equal(chunked, whole[chunk])


def test_unshared_copies_of_the_same_tokens_give_the_same_bits():
    torch.manual_seed(0)
    k, v = torch.randn(2, 90, 2, 64)
    tails = torch.randn(2, 12, 40, 2, 64)
    q = torch.randn(12, 6, 64)

    def result(shared: bool) -> torch.Tensor:
        allocator = PhysicalKVAllocator(400, 16, 2, 64)
        root = allocator.alloc_branch(90).branch_id
        allocator.write(0, torch.from_numpy(allocator.slots(root)), k, v)
        ids = []
        for i in range(12):
            ids.append((allocator.fork(root) if shared else allocator.alloc_branch(90)).branch_id)
            if not shared:
                allocator.write(0, torch.from_numpy(allocator.slots(ids[-1])), k, v)
            allocator.append(ids[-1], 40)
            allocator.write(0, torch.from_numpy(allocator.slots(ids[-1], 90)), tails[0, i], tails[1, i])
        return tree_attention(q, allocator, ids)

    assert torch.equal(result(shared=True), result(shared=False))


@pytest.mark.parametrize("limit", ["_SLAB_BYTES", "_BATCH_BYTES"])
def test_work_cut_to_stay_cached_changes_no_bit(random_forest, monkeypatch, limit):
    forest = random_forest(2, most_queries=40)
    settings = options("all", forest.heads)
    whole = attend(forest, **settings)
    for size in (1, 1 << 16):
        monkeypatch.setattr(grouped_work, limit, size)
        assert torch.equal(attend(forest, **settings), whole)


@pytest.mark.parametrize("group", [1, 3, 4])
def test_rows_come_in_the_multiples_that_products_need(random_forest, monkeypatch, group):
    """As for MKL with AVX2, whose products end in other code unless their rows are a multiple of 6."""
    monkeypatch.setattr(grouped_work, "_row_counts", lambda dim, threads, device: (6, 6))
    forest = random_forest(4, kv_heads=1, group=group, most_queries=9, steps=80)
    plan = plan_attention(forest.allocator, forest.branch_ids, forest.q_lens, backend="torch")
    out = torch.full_like(forest.q, torch.nan)
    tree_attention(forest.q, forest.allocator, plan=plan, out=out)
    assert_near(out, forest.expected(), 2e-6)
    rows = [batch.scores.shape[1] for slabs in plan._work.values() for slab in slabs for batch in slab.batches]
    assert rows
    assert all(count % 6 == 0 for count in rows)


def test_parts_of_a_plan_leave_each_others_memory_alone_from_layer_to_layer(random_forest, monkeypatch):
    forest = random_forest(8, most_queries=40, num_layers=3, steps=60)
    plan = plan_attention(forest.allocator, forest.branch_ids, forest.q_lens, backend="torch")
    layers = (0, 1, 2, 0, 1)
    whole = [tree_attention(forest.q, forest.allocator, plan=plan, layer=layer) for layer in layers]
    for size in (1 << 15, 1 << 16, 1 << 17, 1 << 18):
        monkeypatch.setattr(grouped_work, "_SLAB_BYTES", size)
        plan = plan_attention(forest.allocator, forest.branch_ids, forest.q_lens, backend="torch")
        for layer, expected in zip(layers, whole, strict=True):
            assert torch.equal(tree_attention(forest.q, forest.allocator, plan=plan, layer=layer), expected)


def test_a_part_of_a_chunk_is_read_as_far_as_it_is_seen():
    allocator = PhysicalKVAllocator(100, 4, 1, 16)
    ids = [allocator.alloc_branch(n).branch_id for n in (5, 17, 33, 64)]
    plan = plan_attention(allocator, ids)
    tree_attention(torch.zeros(4, 4, 16), allocator, plan=plan)
    ((slab,),) = plan._work.values()
    assert max(batch.scores.shape[2] for batch in slab.batches) == grouped_work.CHUNK
    tree_attention(torch.zeros(2, 4, 16), allocator, plan=(plan := plan_attention(allocator, ids[:2])))
    ((slab,),) = plan._work.values()
    assert slab.batches[0].scores.shape[2] in (32, grouped_work.CHUNK)


def test_two_threads_give_the_bits_of_one():
    torch.manual_seed(0)
    allocator = PhysicalKVAllocator(40, 16, 1, 64)
    allocator.k_cache.normal_()
    allocator.v_cache.normal_()
    ids = [allocator.alloc_branch(n).branch_id for n in (3, 70, 130)]
    q = torch.randn(3, 3, 64)
    one = [tree_attention(q, allocator, ids), tree_attention(q[:1], allocator, ids[:1])]
    torch.set_num_threads(2)
    two = [tree_attention(q, allocator, ids), tree_attention(q[:1], allocator, ids[:1])]
    assert all(map(torch.equal, one, two))


def test_branches_within_one_chunk_give_the_same_bits_beside_longer_ones():
    allocator = PhysicalKVAllocator(128, 4, 2, 16)
    allocator.kv_cache.normal_(generator=torch.Generator().manual_seed(1))
    lengths = (3, 40, grouped_work.CHUNK, grouped_work.CHUNK + 1, 3 * grouped_work.CHUNK)
    branches = [allocator.alloc_branch(length).branch_id for length in lengths]
    q = torch.randn(len(branches), 4, 16, generator=torch.Generator().manual_seed(2))
    for sinks in (None, torch.tensor([0.0, 1.0, -2.0, 3.0])):
        together = tree_attention(q, allocator, branches, sinks=sinks)
        for few in (1, 2, 3):
            assert torch.equal(tree_attention(q[:few], allocator, branches[:few], sinks=sinks), together[:few])
        expected = tree_attention(q, allocator, branches, sinks=sinks, backend="reference")
        torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


def test_stale_nan_in_slots_beyond_a_branch_does_not_reach_it():
    allocator = PhysicalKVAllocator(8, 16, 2, 8)
    torch.manual_seed(0)
    allocator.k_cache.normal_()
    allocator.v_cache.normal_()
    branch = allocator.alloc_branch(70).branch_id
    q = torch.randn(1, 4, 8)
    clean = tree_attention(q, allocator, [branch])
    own = torch.zeros(8 * 16, dtype=torch.bool)
    own[torch.from_numpy(allocator.slots(branch))] = True
    for cache in (allocator.k_cache, allocator.v_cache):
        cache.flatten(1, 2)[:, ~own] = torch.nan
    assert torch.equal(tree_attention(q, allocator, [branch]), clean)


def test_one_plan_serves_every_layer_window_and_head_count(random_forest):
    forest = random_forest(4, num_layers=3)
    plan = plan_attention(forest.allocator, forest.branch_ids, forest.q_lens, backend="torch")
    for layer, window in ((0, None), (1, 50), (2, None), (0, 50)):
        got = tree_attention(forest.q, forest.allocator, plan=plan, layer=layer, window=window)
        assert_near(got, forest.expected(layer=layer, window=window), 2e-6)
    half = tree_attention(forest.q[:, ::2], forest.allocator, plan=plan)
    assert half.shape[1] == forest.heads // 2


def test_strided_queries_are_read_as_they_are(random_forest):
    forest = random_forest(6)
    expected = attend(forest)
    strided = forest.q.transpose(0, 1).contiguous().transpose(0, 1)
    got = tree_attention(strided, forest.allocator, forest.branch_ids, q_lens=forest.q_lens)
    assert torch.equal(got, expected)
    assert got.is_contiguous()


def test_a_chunk_that_many_branches_share_is_read_once_for_all():
    allocator = PhysicalKVAllocator(300, 16, 1, 16)
    root = allocator.alloc_branch(1024).branch_id
    ids = [allocator.alloc_branch(1040, parent_branch_id=root).branch_id for _ in range(64)]
    plan = plan_attention(allocator, ids)
    tree_attention(torch.zeros(64, 4, 16), allocator, plan=plan)
    ((slab,),) = plan._work.values()
    shared, alone = slab.batches
    assert shared.shape[0] == 1024 // grouped_work.CHUNK
    assert alone.shape[0] == 64


def test_softmax_of_large_scores_stays_finite():
    allocator = PhysicalKVAllocator(16, 16, 1, 8)
    allocator.k_cache.fill_(100.0)
    allocator.v_cache.fill_(3.0)
    branch = allocator.alloc_branch(200).branch_id
    q = torch.full((1, 2, 8), 100.0)
    got = tree_attention(q, allocator, [branch], sinks=torch.tensor([-1e4, 0.0]))
    torch.testing.assert_close(got, torch.full((1, 2, 8), 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (1, 1)])
@pytest.mark.parametrize("lengths", [[70], [3, 64, 81, 100], [62, 63, 126, 190, 40, 41]])
def test_a_plan_that_grew_gives_the_bits_of_a_new_one(
    dtype: torch.dtype, heads: int, kv_heads: int, lengths: list[int]
) -> None:
    allocator = PhysicalKVAllocator(400, 4, kv_heads, 16, dtype=dtype)
    allocator.kv_cache.normal_(generator=torch.Generator().manual_seed(1))
    root = allocator.alloc_branch(38).branch_id
    ids = [allocator.fork(root, min(n, 38)).branch_id for n in lengths]
    for branch, length in zip(ids, lengths, strict=True):
        if length > 38:
            allocator.append(branch, length - 38)
    allocator.append_many(ids, [1] * len(ids))
    plan, grown = plan_attention(allocator, ids), 0
    for step in range(70):
        q = torch.randn(len(ids), heads + 1, 16, generator=torch.Generator().manual_seed(step))[:, :heads]
        fresh = tree_attention(q, allocator, ids)
        assert torch.equal(tree_attention(q, allocator, plan=plan), fresh)
        allocator.append_many(ids, [1] * len(ids))
        assert isinstance(plan, GroupedPlan)
        longer = plan.grown(allocator)
        grown += longer is not None
        assert (longer is None) >= any(allocator.length(i) % 64 == 1 for i in ids), "a new chunk is a new tile"
        plan = longer or plan_attention(allocator, ids)
    assert grown > 30


def test_a_plan_does_not_grow_into_another_tree() -> None:
    allocator = PhysicalKVAllocator(200, 4, 1, 16)
    root = allocator.alloc_branch(30).branch_id
    ids = [allocator.fork(root, n).branch_id for n in (30, 29)]

    def plan() -> GroupedPlan:
        made = plan_attention(allocator, ids)
        tree_attention(torch.zeros(2, 1, 16), allocator, plan=made)
        assert isinstance(made, GroupedPlan)
        return made

    shared = plan()
    assert shared.grown(allocator) is None, "nothing grew"
    allocator.append_many(ids, [1, 1])
    assert shared.grown(allocator) is None, "the tail that they shared was copied"
    apart = plan()
    allocator.append_many(ids, [1, 2])
    assert apart.grown(allocator) is None, "one grew by two"
    windowed = plan_attention(allocator, ids)
    tree_attention(torch.zeros(2, 1, 16), allocator, plan=windowed, window=8)
    allocator.append_many(ids, [1, 1])
    assert isinstance(windowed, GroupedPlan)
    assert windowed.grown(allocator) is None, "a window moves"
    kept = plan()
    allocator.append_many(ids, [1, 1])
    assert kept.grown(allocator) is not None
