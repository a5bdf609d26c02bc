"""The reference itself, against torch's own attention and against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import tree_attention


def one_branch(tokens: int, heads: int = 4, kv_heads: int = 2, dim: int = 8):
    torch.manual_seed(tokens)
    allocator = PhysicalKVAllocator(8, 16, kv_heads, dim)
    branch = allocator.alloc_branch(tokens).branch_id
    k, v = torch.randn(2, tokens, kv_heads, dim)
    allocator.write(0, torch.from_numpy(allocator.slots(branch)), k, v)
    return allocator, branch, torch.randn(tokens, heads, dim), k, v


@pytest.mark.parametrize("window", [None, 1, 5])
def test_a_whole_branch_equals_sdpa_with_the_mask_written_out(window):
    allocator, branch, q, k, v = one_branch(40)
    positions = torch.arange(40)
    seen = positions[None, :] <= positions[:, None]
    if window is not None:
        seen &= positions[None, :] > positions[:, None] - window
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), *(x.repeat_interleave(2, 1).transpose(0, 1) for x in (k, v)), attn_mask=seen, scale=0.3
    ).transpose(0, 1)
    got = tree_attention(q, allocator, [branch], q_lens=[40], scale=0.3, window=window, backend="reference")
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_softcap_and_sink_are_as_in_the_formula():
    allocator, branch, q, k, v = one_branch(3, heads=1, kv_heads=1, dim=2)
    sink, cap = 0.7, 1.5
    scores = [cap * math.tanh(float(q[2, 0] @ k[j, 0]) / math.sqrt(2) / cap) for j in range(3)]
    total = sum(map(math.exp, scores)) + math.exp(sink)
    expected = sum(math.exp(s) / total * v[j, 0] for j, s in enumerate(scores))
    got = tree_attention(q[2:], allocator, [branch], softcap=cap, sinks=torch.tensor([sink]), backend="reference")
    torch.testing.assert_close(got[0, 0], expected, rtol=1e-5, atol=1e-6)
