"""What `tree_attention` accepts and refuses, whatever the backend."""

from __future__ import annotations

import pytest
import torch

from frtool import PhysicalKVAllocator, plan_attention, tree_attention


@pytest.fixture
def pool() -> PhysicalKVAllocator:
    allocator = PhysicalKVAllocator(8, 4, num_kv_heads=2, head_dim=8, num_layers=2)
    allocator.alloc_branch(5)
    allocator.alloc_branch(3)
    return allocator


Q = torch.zeros(2, 4, 8)


@pytest.mark.parametrize(
    ("q", "settings", "message"),
    [
        (torch.zeros(2, 8), {}, "q must be floating point"),
        (torch.zeros(2, 4, 8, dtype=torch.int64), {}, r"q must be floating point .* not torch\.int64"),
        (torch.zeros(2, 4, 6), {}, "q has head_dim 6, the pool 8"),
        (torch.zeros(2, 3, 8), {}, "3 query heads are no multiple of the pool's 2"),
        (torch.zeros(3, 4, 8), {}, "q has 3 tokens but the branches ask with 2"),
        (Q, {"layer": 2}, "layer 2 is not one of the pool's 2"),
        (Q, {"scale": float("nan")}, "scale must be finite"),
        (Q, {"window": 0}, "window must be at least 1, not 0"),
        (Q, {"softcap": 0.0}, "softcap must be positive"),
        (Q, {"sinks": torch.zeros(3)}, r"sinks must be \[4\]"),
        (Q, {"out": torch.zeros(2, 4, 8, dtype=torch.float16)}, "out must be like q"),
        (Q, {"backend": "cuda"}, "backend must be one of triton, torch, reference, not 'cuda'"),
        (Q, {"q_lens": [1, 4]}, "branch 1 of 3 tokens cannot have 4 query tokens"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(pool, q, settings, message):
    with pytest.raises(ValueError, match=message):
        tree_attention(q, pool, [0, 1], **settings)


def test_branches_or_a_plan_are_needed(pool):
    with pytest.raises(ValueError, match="needs branch_ids or a plan"):
        tree_attention(Q, pool)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branch_ids": [1, 0]}, "branch_ids are not those of the plan"),
        ({"q_lens": [1, 1]}, "q_lens are part of the plan"),
        ({"backend": "reference"}, "the plan is for backend 'torch', not 'reference'"),
    ],
)
def test_a_plan_and_what_contradicts_it_are_refused(pool, settings, message):
    plan = plan_attention(pool, [0, 1], backend="torch")
    with pytest.raises(ValueError, match=message):
        tree_attention(Q, pool, plan=plan, **settings)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_plans_have_a_common_face(pool, backend):
    plan = plan_attention(pool, [1, 0], [2, 3], backend=backend)
    assert (plan.branch_ids, plan.num_queries, plan.backend) == ((1, 0), 5, backend)
    assert tree_attention(torch.zeros(5, 4, 8), pool, [1, 0], plan=plan, backend=backend).shape == (5, 4, 8)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_padding_rows_after_a_plans_queries_are_left_alone(pool, backend):
    pool.kv_cache.normal_()
    plan = plan_attention(pool, [0, 1], backend=backend)
    q = torch.randn(2, 4, 8)
    padded = torch.cat([q, torch.full((3, 4, 8), torch.nan)])
    wanted = tree_attention(q, pool, plan=plan)
    result = tree_attention(padded, pool, plan=plan)
    assert torch.equal(result[:2], wanted)
    assert not result[2:].any()
    out = torch.full((5, 4, 8), 7.0)
    assert tree_attention(padded, pool, plan=plan, out=out) is out
    assert torch.equal(out[:2], wanted)
    assert (out[2:] == 7).all()
    with pytest.raises(ValueError, match="q has 1 tokens but the branches ask with 2"):
        tree_attention(q[:1], pool, plan=plan)


def test_the_default_backend_on_a_cpu_is_torch(pool):
    assert plan_attention(pool, [0]).backend == plan_attention(pool, [0], backend="auto").backend == "torch"


def test_no_gradient_flows(pool):
    assert not tree_attention(Q.clone().requires_grad_(), pool, [0, 1]).requires_grad


def test_a_pool_made_and_used_in_inference_mode_can_be_used_outside():
    with torch.inference_mode():
        pool = PhysicalKVAllocator(8, 4, num_kv_heads=2, head_dim=8)
        branch = pool.alloc_branch(5).branch_id
        slots, k = torch.from_numpy(pool.slots(branch)), torch.ones(5, 2, 8)
        pool.write(0, slots, k, k)
        inside = tree_attention(Q[:1], pool, [branch])
    pool.append(pool.fork(branch).branch_id)
    pool.write(0, slots, k, k)
    assert torch.equal(tree_attention(Q[:1], pool, [branch]), inside)
