"""The compiled kernel on a GPU: numbers, determinism, graphs that are replayed while branches grow and fork."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch

from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.cost import CostRule
from frtool.kernels.plan import plan_tree
from frtool.kernels.reference import ReferencePlan, attend_reference
from frtool.kernels.specialized import SpecializedRule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}


def rules(seed: int) -> CostRule | None:
    """The default, and ones that take wide items and splits wherever they can."""
    return [
        None,
        CostRule(132, item=0.01, piece=0.01, narrow_key=0.1, own_run=16),
        CostRule(132, item=0.01, piece=0.01, narrow_key=0.05, wide_items=3, narrow_items=2),
        CostRule(4, narrow_items=9),
    ][seed % 4]


def random_pool(
    seed: int, *, branches: int = 40, longest: int = 300, block_size: int = 16, kv_heads: int = 2, head_dim: int = 128,
    dtype: torch.dtype = torch.float16,
) -> tuple[PhysicalKVAllocator, list[int], random.Random]:  # fmt: skip
    rng = random.Random(seed)
    torch.manual_seed(seed)
    blocks = branches * (2 * longest // block_size + 4)
    pool = PhysicalKVAllocator(blocks, block_size, kv_heads, head_dim, "cuda", 1, dtype)
    ids = [pool.alloc_branch(rng.randint(1, longest)).branch_id for _ in range(rng.randint(1, 3))]
    while len(ids) < branches:
        parent = rng.choice(ids)
        position = rng.randint(1, pool.length(parent))
        ids.append(pool.alloc_branch(position + rng.randint(0, longest // 2), parent, position).branch_id)
    rng.shuffle(ids)
    pool.kv_cache.normal_()
    return pool, ids, rng


def poison(pool: PhysicalKVAllocator, ids: list[int]) -> None:
    held = torch.zeros(pool.num_blocks * pool.block_size, dtype=torch.bool, device="cuda")
    for branch in ids:
        held[torch.from_numpy(pool.slots(branch)).cuda()] = True
    for cache in (pool.k_cache, pool.v_cache):
        cache.flatten(1, 2)[:, ~held] = torch.nan


def attend(pool: Any, plan: Any, q: torch.Tensor, out: torch.Tensor, **options: Any) -> torch.Tensor:
    from frtool.kernels.triton_tree import attend_triton

    settings = {"scale": q.shape[2] ** -0.5, "window": None, "softcap": None, "sinks": None, "layer": 0, **options}
    return attend_triton(q, pool, plan, out=out, **settings)


def exact(pool: Any, ids: list[int], q_lens: list[int], q: torch.Tensor, **options: Any) -> torch.Tensor:
    plan = ReferencePlan(plan_tree(pool, ids, q_lens))
    settings = {"scale": q.shape[2] ** -0.5, "window": None, "softcap": None, "sinks": None, "layer": 0, **options}
    expected = torch.empty_like(q, dtype=torch.float64)
    return attend_reference(q.double(), pool, plan, out=expected, dtype=torch.float64, **settings)


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def error(pool: Any, ids: list[int], q_lens: list[int], q: torch.Tensor, out: torch.Tensor, **options: Any) -> float:
    return distance(out, exact(pool, ids, q_lens, q, **options))


@pytest.fixture
def _specialized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tree of which some tile shares a round of keys gets the specialized kernel."""
    from frtool.kernels.triton_tree import _specialized as kernel

    if torch.cuda.get_device_capability() != (9, 0) or kernel() is None:
        pytest.skip("needs Hopper and Triton 3.6")
    rule = partial(SpecializedRule, least_shared=0.0, most_masked=1e9, others=1e9)
    monkeypatch.setattr("frtool.kernels.triton_tree.SpecializedRule", rule)


def check(seed: int, *, group: int = 4, most_queries: int = 1, options: dict[str, Any] | None = None, **pool: Any):
    from frtool.kernels.triton_tree import plan_triton

    allocator, ids, rng = random_pool(seed, **pool)
    q_lens = [min(rng.randint(1, most_queries), allocator.length(i)) for i in ids]
    heads = allocator.num_kv_heads * group
    options = dict(options or {})
    if options.get("sinks"):
        options["sinks"] = torch.randn(heads, device="cuda")
    q = torch.randn(sum(q_lens), heads, allocator.head_dim, device="cuda").to(allocator.dtype)
    poison(allocator, ids)
    plan = plan_triton(allocator, plan_tree(allocator, ids, q_lens))
    launch = plan.launch_for(heads, rule=rules(seed), windowed=options.get("window") is not None)
    launch.partial.fill_(torch.nan)
    launch.partial_lse.fill_(torch.nan)
    outs = [attend(allocator, plan, q, torch.full_like(q, torch.nan), **options) for _ in range(4)]
    assert all(torch.equal(outs[0], out) for out in outs[1:]), "not bit-identical from run to run"
    assert not launch.arrivals.any()
    assert error(allocator, ids, q_lens, q, outs[0], **options) < TOLERANCE[allocator.dtype]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("dtype", "head_dim", "kv_heads", "group", "block_size", "most_queries"),
    [
        pytest.param(torch.float16, 128, 8, 4, 16, 1, id="fp16"),
        pytest.param(torch.bfloat16, 128, 8, 4, 16, 7, id="bf16"),
        pytest.param(torch.float32, 128, 2, 4, 16, 3, id="fp32"),
        pytest.param(torch.float16, 64, 4, 8, 8, 1, id="d64"),
        pytest.param(torch.bfloat16, 80, 3, 5, 24, 2, id="d80"),
        pytest.param(torch.float16, 96, 1, 16, 64, 1, id="d96"),
        pytest.param(torch.float16, 256, 2, 3, 128, 5, id="d256"),
        pytest.param(torch.bfloat16, 128, 32, 1, 16, 1, id="no-gqa"),
    ],
)
def test_matches_the_reference(
    seed: int, dtype: torch.dtype, head_dim: int, kv_heads: int, group: int, block_size: int, most_queries: int
) -> None:
    check(
        seed, group=group, most_queries=most_queries, dtype=dtype, head_dim=head_dim, kv_heads=kv_heads,
        block_size=block_size, branches=(24, 90)[seed % 2],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", [{"window": 37}, {"softcap": 5.0, "sinks": True}, {"window": 100, "sinks": True}])
def test_options_match_the_reference(seed: int, dtype: torch.dtype, options: dict[str, Any]) -> None:
    check(seed, dtype=dtype, options=options, most_queries=3)


def test_a_captured_graph_serves_while_branches_grow_fork_and_die() -> None:
    from frtool.kernels.triton_tree import plan_triton

    pool, ids, rng = random_pool(5, branches=60)
    rows = 80
    q = torch.randn(rows, 8, 128, device="cuda", dtype=torch.float16)
    out = torch.full_like(q, torch.nan)
    plan = plan_triton(pool, plan_tree(pool, ids))
    attend(pool, plan, q, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(pool, plan, q, out)
    captures = 1
    for step in range(80):
        pool.append_many(ids, [1] * len(ids))
        if step % 8 == 5:
            pool.free_branch(ids.pop(rng.randrange(len(ids))))
            ids.append(pool.fork(rng.choice(ids)).branch_id)
        if not plan.update(plan_tree(pool, ids)):
            captures += 1
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                attend(pool, plan, q, out)
        out.fill_(torch.nan)
        graph.replay()
        if step % 8 == 5:
            count = len(ids)
            assert error(pool, ids, [1] * count, q[:count], out[:count]) < 1e-3
            assert out[count:].isnan().all(), "rows after the last query are left alone"
    assert captures <= 3


def replay_while_branches_grow(
    pool: PhysicalKVAllocator, ids: list[int], plan: Any, launch: Any, holds: Callable[[], bool]
) -> None:
    """Forty steps of 70 branches, of which one dies and another is forked, with three captures at most."""
    q = torch.randn(80, 8, 128, device="cuda", dtype=torch.float16)
    out = torch.full_like(q, torch.nan)
    attend(pool, plan, q, out)
    graph = None
    captures = 0
    for step in range(40):
        pool.append_many(ids, [1] * len(ids))
        if step == 20:
            pool.free_branch(ids.pop())
            ids.append(pool.fork(ids[0]).branch_id)
        if not plan.update(plan_tree(pool, ids)) or graph is None:
            captures += 1
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                attend(pool, plan, q, out)
        assert holds()
        out.fill_(torch.nan)
        graph.replay()
        first = out.clone()  # right behind: what follows must find all launches finished
        graph.replay()
        assert torch.equal(first[:70], out[:70])
        if step % 8 == 5:
            assert error(pool, ids, [1] * 70, q[:70], first[:70]) < 1e-3
            assert first[70:].isnan().all()
    assert not launch.arrivals.any()
    assert captures <= 3


def test_a_captured_graph_of_two_launches_serves_while_branches_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    from frtool.kernels import triton_tree

    monkeypatch.setattr(triton_tree, "_LEAST_APART", 0.0)
    torch.manual_seed(0)
    pool = PhysicalKVAllocator(900, 16, 2, 128, "cuda", 1, torch.float16)
    pool.kv_cache.normal_()
    root = pool.alloc_branch(330)
    ids = [pool.alloc_branch(370 + i, root.branch_id, 330 - i % 2).branch_id for i in range(70)]
    plan = triton_tree.plan_triton(pool, plan_tree(pool, ids))
    rule = CostRule(4, item=0.001, piece=0.001, narrow_key=0.02, masked_key=1.0, own_run=10**6, wide_items=3)
    launch = plan.launch_for(8, rule=rule)
    replay_while_branches_grow(pool, ids, plan, launch, lambda: launch.apart and launch.tables["wide_count"][0] > 0)


def forks_of_a_prompt(
    seed: int, *, branches: int = 70, prompt: int = 700, block_size: int = 16, kv_heads: int = 2,
    dtype: torch.dtype = torch.float16,
) -> tuple[PhysicalKVAllocator, list[int]]:  # fmt: skip
    """Branches below a long one, forked anywhere, many of them near its end; what no branch holds is NaN."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    pool = PhysicalKVAllocator(branches * (prompt // block_size + 9), block_size, kv_heads, 128, "cuda", 1, dtype)
    ids = [pool.alloc_branch(prompt).branch_id]
    while len(ids) < branches:
        parent = rng.choice(ids[: rng.choice([1, 3, 99])])
        position = rng.randint(pool.length(parent) - rng.choice([0, 9, 90]), pool.length(parent))
        ids.append(pool.alloc_branch(position + rng.randint(1, 90), parent, position).branch_id)
    rng.shuffle(ids)
    pool.kv_cache.normal_()
    poison(pool, ids)
    return pool, ids


@pytest.mark.usefixtures("_specialized")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("dtype", "group", "block_size", "kv_heads", "branches", "options"),
    [
        pytest.param(torch.float16, 4, 16, 8, 70, {}, id="fp16"),
        pytest.param(torch.bfloat16, 4, 16, 2, 70, {}, id="bf16"),
        pytest.param(torch.float16, 7, 64, 1, 20, {}, id="odd-group"),
        pytest.param(torch.float16, 2, 48, 3, 200, {}, id="block-of-three-entries"),
        pytest.param(torch.float16, 3, 128, 2, 200, {"softcap": 5.0}, id="softcap"),
        pytest.param(torch.bfloat16, 4, 32, 2, 33, {"sinks": True}, id="sinks"),
        pytest.param(torch.float16, 5, 16, 2, 70, {"softcap": 5.0, "sinks": True, "scale": -0.3}, id="all"),
    ],
)
def test_the_specialized_kernel_matches_the_reference(
    seed: int, dtype: torch.dtype, group: int, block_size: int, kv_heads: int, branches: int, options: dict[str, Any]
) -> None:
    from frtool.kernels.triton_tree import plan_triton

    pool, ids = forks_of_a_prompt(seed, branches=branches, block_size=block_size, kv_heads=kv_heads, dtype=dtype)
    heads = kv_heads * group
    if options.get("sinks"):
        options = {**options, "sinks": torch.randn(heads, device="cuda")}
    q = torch.randn(branches + 2, heads, 128, device="cuda").to(dtype)
    plan = plan_triton(pool, plan_tree(pool, ids))
    launch = plan.launch_for(heads)
    assert launch.specialized
    launch.partial.fill_(torch.nan)
    launch.partial_lse.fill_(torch.nan)
    outs = [attend(pool, plan, q, torch.full_like(q, torch.nan), **options) for _ in range(4)]
    assert all(torch.equal(outs[0][:branches], out[:branches]) for out in outs[1:]), "not bit-identical"
    assert outs[0][branches:].isnan().all(), "rows after the last query are left alone"
    assert not launch.arrivals.any()
    ones = [1] * branches
    assert error(pool, ids, ones, q[:branches], outs[0][:branches], **options) < TOLERANCE[dtype]
    window = attend(pool, plan, q, torch.full_like(q, torch.nan), **{**options, "window": 90})
    assert error(pool, ids, ones, q[:branches], window[:branches], **{**options, "window": 90}) < TOLERANCE[dtype]


@pytest.mark.usefixtures("_specialized")
def test_a_captured_graph_of_the_specialized_kernel_serves_while_branches_grow() -> None:
    from frtool.kernels.triton_tree import plan_triton

    pool, ids = forks_of_a_prompt(3, prompt=2000)
    pool.kv_cache.normal_()
    plan = plan_triton(pool, plan_tree(pool, ids))
    launch = plan.launch_for(8)
    replay_while_branches_grow(pool, ids, plan, launch, lambda: launch.specialized)


@pytest.mark.usefixtures("_specialized")
@pytest.mark.slow
def test_a_thousand_random_plans_of_the_specialized_kernel() -> None:
    from frtool.kernels.triton_tree import plan_triton

    taken = 0
    for seed in range(50):
        pool, ids = forks_of_a_prompt(seed, prompt=(300, 1500)[seed % 2])
        pool.kv_cache.normal_()
        rng = random.Random(seed)
        q = torch.randn(len(ids), 8, 128, device="cuda", dtype=torch.float16)
        expected = exact(pool, ids, [1] * len(ids), q)
        for trial in range(20):
            rows = rng.sample(range(len(ids)), rng.randint(1, len(ids)))
            plan = plan_triton(pool, plan_tree(pool, [ids[i] for i in rows]))
            taken += plan.launch_for(8).specialized
            out = attend(pool, plan, q[rows], torch.full_like(q[rows], torch.nan))
            assert distance(out, expected[rows]) < 1e-3, (seed, trial)
    assert taken > 900


@pytest.mark.parametrize("branches", [5, 90])
def test_calls_in_a_graph_start_early_but_wait_for_the_ones_before(branches: int) -> None:
    from frtool.kernels.triton_tree import plan_triton

    pool, ids, _ = random_pool(7, branches=branches)
    plan = plan_triton(pool, plan_tree(pool, ids))
    chain = [torch.randn(branches, 8, 128, device="cuda", dtype=torch.float16) for _ in range(13)]
    expected = [chain[0]]
    for _ in chain[1:]:
        expected.append(attend(pool, plan, expected[-1], torch.empty_like(chain[0])))
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for q, out in pairwise(chain):
            attend(pool, plan, q, out)
    for _ in range(50):
        for out in chain[1:]:
            out.fill_(torch.nan)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(chain, expected, strict=True))


def test_addresses_exceed_32_bits() -> None:
    from frtool.kernels.triton_tree import plan_triton

    blocks = (1 << 31) // (16 * 8 * 128) + 64  # more elements in K than an int32 can count
    if torch.cuda.mem_get_info()[0] < 2 * 2 * blocks * 16 * 8 * 128 + (2 << 30):
        pytest.skip("needs 11 GB of free device memory")
    pool = PhysicalKVAllocator(blocks, 16, 8, 128, "cuda", 1, torch.float16)
    pool.alloc_branch((blocks - 60) * 16)
    ids = [pool.alloc_branch(200).branch_id for _ in range(4)]
    for branch in ids:
        slots = torch.from_numpy(pool.slots(branch)).cuda()
        pool.write(0, slots, *(torch.randn(200, 8, 128, device="cuda") for _ in range(2)))
    q = torch.randn(4, 32, 128, device="cuda", dtype=torch.float16)
    plan = plan_triton(pool, plan_tree(pool, ids))
    out = attend(pool, plan, q, torch.full_like(q, torch.nan))
    assert error(pool, ids, [1] * 4, q, out) < 1e-3


@pytest.mark.slow
def test_ten_thousand_random_plans() -> None:
    """One pool layout a hundred plans: subsets of its branches under every cost rule."""
    from frtool.kernels.triton_tree import plan_triton

    for seed in range(100):
        pool, ids, rng = random_pool(seed, branches=48, longest=(60, 400)[seed % 2])
        q = torch.randn(len(ids), 8, 128, device="cuda", dtype=torch.float16)
        expected = exact(pool, ids, [1] * len(ids), q)
        for trial in range(100):
            rows = rng.sample(range(len(ids)), rng.randint(1, len(ids)))
            plan = plan_triton(pool, plan_tree(pool, [ids[i] for i in rows]))
            plan.launch_for(8, rule=rules(trial))
            out = attend(pool, plan, q[rows], torch.full_like(q[rows], torch.nan))
            assert distance(out, expected[rows]) < 1e-3, (seed, trial)
