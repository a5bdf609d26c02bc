"""Tiles in one call of flash attention, against the reference in fp64 and against themselves in other company."""

from __future__ import annotations

import pytest
import torch

from frtool.kernels import fused, grouped
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import plan_attention, tree_attention
from frtool.kernels.fused import FusedBatch
from frtool.kernels.grouped_work import _tile_pitch

CPU = torch.device("cpu")


@pytest.fixture
def _always(monkeypatch):
    """Also where the processor has no AMX: there it is slower, and no less right."""
    monkeypatch.setattr(grouped, "fused_rows", lambda dtype, dim, device: 2)


def same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """To the bit, where this is promised."""
    exact = bool(fused.fused_rows(torch.bfloat16, 64, CPU))
    return torch.equal(got, expected) if exact else torch.allclose(got, expected, rtol=2e-2, atol=2e-2)


def shared_tree(prefix: int, lengths: list[int]) -> tuple[PhysicalKVAllocator, list[int]]:
    """A pool of random K and V, and branches of `lengths` that share the first `prefix` tokens."""
    torch.manual_seed(0)
    allocator = PhysicalKVAllocator(300, 4, 2, 64, dtype=torch.bfloat16)
    allocator.kv_cache.normal_()
    return allocator, grow_below(allocator, prefix, lengths)


def grow_below(allocator: PhysicalKVAllocator, prefix: int, lengths: list[int]) -> list[int]:
    root = allocator.alloc_branch(prefix).branch_id
    return [allocator.alloc_branch(length, parent_branch_id=root).branch_id for length in lengths]


def near(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((got.double() - expected).abs().max() <= 8e-3 * expected.abs().max())


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("most_queries", [1, 7, 150], ids=["decode", "scoring", "prefill"])
@pytest.mark.parametrize(("kv_heads", "group", "head_dim"), [(1, 1, 64), (2, 3, 32), (1, 7, 128), (3, 1, 20)])
@pytest.mark.parametrize("options", [{}, {"window": 77, "scale": 0.31, "sinks": True}], ids=["plain", "all"])
def test_a_random_forest_equals_the_reference(random_forest, kv_heads, group, head_dim, most_queries, options):
    forest = random_forest(
        7, kv_heads=kv_heads, group=group, head_dim=head_dim, dtype=torch.bfloat16, most_queries=most_queries
    )
    settings = dict(options)
    if settings.pop("sinks", False):
        settings["sinks"] = torch.randn(forest.heads)
    out = torch.full_like(forest.q, torch.nan)
    plan = plan_attention(forest.allocator, forest.branch_ids, forest.q_lens, backend="torch")
    tree_attention(forest.q, forest.allocator, plan=plan, out=out, **settings)
    assert near(out, forest.expected(**settings))
    batches = [batch for slabs in plan._work.values() for slab in slabs for batch in slab.batches]
    assert all(isinstance(batch, FusedBatch) for batch in batches)


@pytest.mark.usefixtures("_always")
def test_a_plan_that_grows_with_its_branches_equals_a_new_one():
    allocator, ids = shared_tree(130, [131 + i for i in range(5)])
    plan = plan_attention(allocator, ids)
    tree_attention(torch.randn(5, 4, 64).bfloat16(), allocator, plan=plan)
    for _ in range(9):
        allocator.append_many(ids, [1] * 5)
        q = torch.randn(5, 4, 64).bfloat16()
        plan = plan.grown(allocator) or plan_attention(allocator, ids)
        assert same(tree_attention(q, allocator, plan=plan), tree_attention(q, allocator, ids))


@pytest.mark.usefixtures("_always")
def test_shared_tokens_that_lie_together_are_read_in_place():
    allocator, ids = shared_tree(256, [257] * 40)
    plan = plan_attention(allocator, ids)
    q = torch.randn(40, 4, 64).bfloat16()
    together = tree_attention(q, allocator, plan=plan)
    ((slab,),) = plan._work.values()
    assert sorted(batch.kv_rows is None for batch in slab.batches) == [False, True]

    scattered = PhysicalKVAllocator(300, 4, 2, 64, dtype=torch.bfloat16)
    for branch in [scattered.alloc_branch(4).branch_id for _ in range(140)][::2]:
        scattered.free_branch(branch)
    others = grow_below(scattered, 256, [257] * 40)
    for mine, other in zip(ids, others, strict=True):
        slots = torch.from_numpy(allocator.slots(mine))
        scattered.write_slots(scattered.slots(other), allocator.read_slots(slots.numpy()))
    plan = plan_attention(scattered, others)
    assert same(tree_attention(q, scattered, plan=plan), together)
    ((slab,),) = plan._work.values()
    assert all(batch.kv_rows is not None for batch in slab.batches)


def test_tiles_lie_together_only_if_all_their_slots_do():
    row = torch.arange(8).numpy()
    assert _tile_pitch(row[None]) == 0
    assert _tile_pitch(row + 16 * row[:3, None]) == 16
    assert _tile_pitch(row + 16 * row[[0, 2, 1], None]) is None
    assert _tile_pitch(row + 16 * row[[2, 1, 0], None]) is None
    assert _tile_pitch(torch.tensor([[0, 1, 3]]).numpy()) is None
    assert _tile_pitch(torch.tensor([[0, 1, 1]]).numpy()) is None


def test_only_bfloat16_on_a_cpu_is_fused():
    assert fused.fused_rows(torch.float32, 64, CPU) == 0
    assert fused.fused_rows(torch.float16, 64, CPU) == 0
    assert fused.fused_rows(torch.bfloat16, 64, torch.device("cuda")) == 0


@pytest.mark.parametrize("fault", ["wrong", "company", "absent"])
def test_where_the_call_is_wrong_or_not_there_nothing_is_fused(monkeypatch, fault):
    flash = fused.flash_attention

    def faulty(q, k, v, hidden, scale):
        if fault == "absent":
            raise AttributeError("_scaled_dot_product_flash_attention_for_cpu")
        mean, log = flash(q, k, v, hidden, scale)
        return (mean + 1, log) if fault == "wrong" else (mean, log + 1e-6 * q.shape[2])

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(fused, "flash_attention", faulty)
    assert fused._rows.__wrapped__(64, 1) == 0
