"""The Triton kernel against the naive fp64 result, in Triton's interpreter.

Triton decides as it is imported whether to interpret, for the whole process: `test_triton_interpreter` runs this file
in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.cost import CostRule
from frtool.kernels.plan import plan_tree
from frtool.kernels.reference import ReferencePlan, attend_reference
from frtool.kernels.schedule import ITEM_FIELDS, MERGE

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs through test_triton_interpreter", allow_module_level=True)

from frtool.kernels import triton_tree

TOLERANCE = {torch.float16: 1e-3, torch.float32: 1e-6}
EAGER_WIDE = CostRule(4, item=0.001, piece=0.001, narrow_key=0.1)
"""Takes wide items wherever two groups share a block, and splits for a small machine."""


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def poison(forest: Any, launch: Any) -> None:
    """NaN wherever the kernel has no business to look: slots that no branch holds, results that nobody stored."""
    pool = forest.allocator
    held = torch.zeros(pool.num_blocks * pool.block_size, dtype=torch.bool)
    for branch in forest.branch_ids:
        held[torch.from_numpy(pool.slots(branch))] = True
    for cache in (pool.k_cache, pool.v_cache):
        cache.flatten(1, 2)[:, ~held] = torch.nan
    launch.partial.fill_(torch.nan)
    launch.partial_lse.fill_(torch.nan)


def attend(forest: Any, rule: CostRule | None = None, **options: Any) -> torch.Tensor:
    pool = forest.allocator
    plan = triton_tree.plan_triton(pool, plan_tree(pool, forest.branch_ids, forest.q_lens))
    launch = plan.launch_for(forest.heads, rule=rule)
    poison(forest, launch)
    out = torch.full_like(forest.q, torch.nan)
    settings = {"scale": pool.head_dim**-0.5, "window": None, "softcap": None, "sinks": None, "layer": 0, **options}
    triton_tree.attend_triton(forest.q, pool, plan, out=out, **settings)
    assert not launch.arrivals.any(), "arrival counters must be zero again"
    return out


@pytest.mark.parametrize(
    ("dtype", "head_dim", "kv_heads", "group", "block_size", "most_queries"),
    [
        pytest.param(torch.float16, 64, 2, 4, 16, 1, id="decode"),
        pytest.param(torch.float16, 128, 1, 16, 16, 1, id="one-kv-head"),
        pytest.param(torch.float16, 80, 2, 3, 8, 1, id="odd-group-odd-head"),
        pytest.param(torch.float16, 96, 1, 7, 24, 3, id="odd-block"),
        pytest.param(torch.float16, 256, 1, 5, 32, 1, id="large-head"),
        pytest.param(torch.float16, 64, 3, 1, 128, 1, id="no-gqa-large-block"),
        pytest.param(torch.float16, 64, 1, 13, 16, 9, id="several-queries"),
        pytest.param(torch.float32, 64, 2, 2, 16, 2, id="fp32"),
        pytest.param(torch.float32, 128, 1, 3, 20, 1, id="fp32-odd-block"),
    ],
)
@pytest.mark.parametrize("rule", [None, EAGER_WIDE], ids=["default", "wide"])
def test_matches_the_reference(
    random_forest: Callable[..., Any], dtype: torch.dtype, head_dim: int, kv_heads: int, group: int, block_size: int,
    most_queries: int, rule: CostRule | None,
) -> None:  # fmt: skip
    forest = random_forest(
        3, dtype=dtype, head_dim=head_dim, kv_heads=kv_heads, group=group, block_size=block_size, steps=30,
        longest=120, most_queries=most_queries, num_layers=1,
    )  # fmt: skip
    expected = forest.expected()
    assert relative_error(attend(forest, rule), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"window": 1}, id="window-1"),
        pytest.param({"window": 37}, id="window"),
        pytest.param({"softcap": 3.0}, id="softcap"),
        pytest.param({"sinks": True}, id="sinks"),
        pytest.param({"window": 64, "softcap": 20.0, "sinks": True}, id="all"),
        pytest.param({"scale": -0.3}, id="negative-scale"),
        pytest.param({"scale": 0.0}, id="zero-scale"),
        pytest.param({"layer": 1}, id="second-layer"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_options_match_the_reference(
    random_forest: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype
) -> None:
    forest = random_forest(5, dtype=dtype, head_dim=64, group=4, steps=36, longest=150, most_queries=3)
    if options.get("sinks"):
        options = {**options, "sinks": torch.randn(forest.heads)}
    expected = forest.expected(**options)
    rule = EAGER_WIDE if dtype == torch.float16 else None
    assert relative_error(attend(forest, rule, **options), expected) < TOLERANCE[dtype]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6), st.sampled_from([1, 2, 5, 16]), st.sampled_from([8, 16, 40]), st.sampled_from([1, 4]),
    st.sampled_from([None, EAGER_WIDE, CostRule(1, narrow_items=3)]),
)  # fmt: skip
def test_any_tree_matches_the_reference(
    random_forest: Callable[..., Any], seed: int, group: int, block_size: int, most_queries: int, rule: CostRule | None
) -> None:
    forest = random_forest(
        seed, dtype=torch.float16, head_dim=64, kv_heads=1, group=group, block_size=block_size, steps=25, longest=100,
        most_queries=most_queries, num_layers=1,
    )  # fmt: skip
    expected = forest.expected()
    assert relative_error(attend(forest, rule), expected) < TOLERANCE[torch.float16]


def test_who_merges_last_changes_no_bit(random_forest: Callable[..., Any]) -> None:
    forest = random_forest(9, dtype=torch.float16, head_dim=64, kv_heads=1, group=4, steps=30, num_layers=1)
    pool = forest.allocator
    plan = triton_tree.plan_triton(pool, plan_tree(pool, forest.branch_ids, forest.q_lens))
    launch = plan.launch_for(forest.heads, rule=EAGER_WIDE)
    outs = []
    for flip in (False, True):  # the interpreter runs programs in order: turning the items round turns arrivals round
        if flip:
            items = launch.tables["items"].view(-1, ITEM_FIELDS)
            waiting = int((items[:, 0] == MERGE).sum())  # merge items come last: they wait for all others
            items[: launch.num_items - waiting] = items[: launch.num_items - waiting].flip(0)
        out = torch.full_like(forest.q, torch.nan)
        triton_tree.attend_triton(
            forest.q, pool, plan, layer=0, scale=0.125, window=None, softcap=None, sinks=None, out=out
        )
        outs.append(out)
    assert torch.equal(*outs)


APART = CostRule(4, item=0.001, piece=0.001, narrow_key=0.02, masked_key=1.0)
"""Takes wide items for what whole tiles share, and narrow ones for the rest."""


def prompt_with_branches(group: int, query_count: int = 1) -> tuple[PhysicalKVAllocator, list[int], torch.Tensor]:
    torch.manual_seed(group)
    pool = PhysicalKVAllocator(400, 16, 1, 128, "cpu", 1, torch.float16)
    pool.kv_cache.normal_()
    root = pool.alloc_branch(170)
    ids = [pool.alloc_branch(200 + i, root.branch_id, 170 - i % 2).branch_id for i in range(40)]
    return pool, ids, torch.randn(40 * query_count, group, 128, dtype=torch.float16)


def reference(pool: PhysicalKVAllocator, ids: list[int], q: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    out = torch.empty(q.shape, dtype=torch.float64)
    plan = ReferencePlan(plan_tree(pool, ids, [len(q) // len(ids)] * len(ids)))
    return attend_reference(q, pool, plan, out=out, dtype=torch.float64, **settings)


@pytest.mark.parametrize(
    ("group", "query_count", "options"),
    [(4, 1, {}), (3, 1, {"window": 90}), (5, 2, {"softcap": 4.0}), (7, 1, {"sinks": True})],
)
def test_wide_items_in_a_launch_of_their_own_match_the_reference(
    monkeypatch: pytest.MonkeyPatch, group: int, query_count: int, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(triton_tree, "_LEAST_APART", 0.0)
    pool, ids, q = prompt_with_branches(group, query_count)
    if options.get("sinks"):
        options = {"sinks": torch.randn(q.shape[1])}
    plan = triton_tree.plan_triton(pool, plan_tree(pool, ids, [query_count] * 40))
    launch = plan.launch_for(q.shape[1], rule=APART)
    settings = {"scale": 128**-0.5, "window": None, "softcap": None, "sinks": None, "layer": 0, **options}
    for _ in range(2):
        assert launch.apart
        assert launch.tables["wide_count"][0] > 0
        launch.partial.fill_(torch.nan)
        out = torch.full_like(q, torch.nan)
        triton_tree.attend_triton(q, pool, plan, out=out, **settings)
        assert not launch.arrivals.any()
        assert relative_error(out, reference(pool, ids, q, settings)) < TOLERANCE[torch.float16]
        pool.append_many(ids, [1] * len(ids))
        plan.update()


def test_graphs_go_stale_where_launches_are_joined_or_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tree, "_LEAST_APART", 30.0)
    pool, ids, q = prompt_with_branches(4)
    whole = plan_tree(pool, ids)
    plan = triton_tree.plan_triton(pool, whole)
    launch = plan.launch_for(q.shape[1], rule=APART)
    assert launch.apart
    assert plan.update(whole)
    assert not plan.update(plan_tree(pool, ids[:2]))
    assert not launch.apart
    assert not plan.update(whole)


def test_layers_with_and_without_a_window_share_a_schedule_where_one_kernel_does_both() -> None:
    pool, ids, q = prompt_with_branches(4)
    plan = triton_tree.plan_triton(pool, plan_tree(pool, ids))
    assert plan.launch_for(q.shape[1], windowed=True) is plan.launch_for(q.shape[1])


def test_a_plan_follows_growth_forks_and_prunes_in_the_same_buffers(random_forest: Callable[..., Any]) -> None:
    forest = random_forest(11, dtype=torch.float16, head_dim=64, kv_heads=1, group=2, steps=30, num_layers=1)
    pool, ids = forest.allocator, forest.branch_ids
    plan = triton_tree.plan_triton(pool, plan_tree(pool, ids))
    buffers = [t.data_ptr() for t in plan.launch_for(forest.heads).tables.values()]
    for step in range(6):
        pool.append_many(ids, [1] * len(ids))
        if step % 2:
            pool.free_branch(ids.pop())
            ids.append(pool.fork(ids[0], pool.length(ids[0]) // 2).branch_id)
        assert plan.update(plan_tree(pool, ids) if step % 2 else None)
        assert plan.branch_ids == tuple(ids)
        forest.q_lens = [1] * len(ids)
        forest.__post_init__()
        out = torch.full_like(forest.q, torch.nan)
        triton_tree.attend_triton(
            forest.q, pool, plan, layer=0, scale=0.125, window=None, softcap=None, sinks=None, out=out
        )
        assert relative_error(out, forest.expected()) < 1e-3
    assert buffers == [t.data_ptr() for t in plan.launch_for(forest.heads).tables.values()]


def test_update_says_when_its_buffers_had_to_grow(random_forest: Callable[..., Any]) -> None:
    forest = random_forest(1, dtype=torch.float16, head_dim=64, steps=4, roots=1, longest=400)
    pool = forest.allocator
    plan = triton_tree.plan_triton(pool, plan_tree(pool, forest.branch_ids[:1]))
    plan.launch_for(forest.heads)
    assert plan.update()
    crowd = [pool.fork(forest.branch_ids[0]).branch_id for _ in range(400)]
    assert not plan.update(plan_tree(pool, crowd))


def test_rows_after_the_last_query_are_left_alone(random_forest: Callable[..., Any]) -> None:
    forest = random_forest(2, dtype=torch.float16, head_dim=64, steps=10)
    pool = forest.allocator
    plan = triton_tree.plan_triton(pool, plan_tree(pool, forest.branch_ids, forest.q_lens))
    q = torch.cat([forest.q, torch.full_like(forest.q[:3], torch.nan)])
    out = torch.full_like(q, 7.0)
    triton_tree.attend_triton(q, pool, plan, layer=0, scale=0.125, window=None, softcap=None, sinks=None, out=out)
    assert (out[-3:] == 7).all()
    assert relative_error(out[:-3], forest.expected(scale=0.125)) < 1e-3


def test_limits_are_named(random_forest: Callable[..., Any]) -> None:
    forest = random_forest(2, head_dim=16, kv_heads=1, group=17, steps=3)
    plan = triton_tree.plan_triton(forest.allocator, plan_tree(forest.allocator, forest.branch_ids))
    with pytest.raises(ValueError, match="17 query heads to a kv head is over the kernel's limit of 16"):
        plan.launch_for(forest.heads)
    wide = random_forest(2, head_dim=257, kv_heads=1, group=1, steps=3)
    plan = triton_tree.plan_triton(wide.allocator, plan_tree(wide.allocator, wide.branch_ids))
    with pytest.raises(ValueError, match="head_dim 257 is over the kernel's limit of 256"):
        plan.launch_for(wide.heads)
