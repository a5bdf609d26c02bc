"""The naive truth: every query against every token of its own path. The other backends are held against this.

For query token t of a branch, at branch position p, query head h and kv head h // (Hq // Hk):

    s_j = scale * <q, k_j>                      for 0 <= j <= p, and j > p - window where there is a window
    s_j = softcap * tanh(s_j / softcap)         where there is a soft cap
    o   = sum_j exp(s_j) v_j / (sum_j exp(s_j) + exp(sink_h))    without the last term where there are no sinks
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .allocator import PhysicalKVAllocator
from .plan import TreePlan


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The tree as it is: the reference plans nothing."""

    tree: TreePlan
    backend: str = "reference"

    @property
    def branch_ids(self) -> tuple[int, ...]:
        return self.tree.branch_ids

    @property
    def num_queries(self) -> int:
        return self.tree.num_queries


def attend_reference(
    q: torch.Tensor,
    allocator: PhysicalKVAllocator,
    plan: ReferencePlan,
    *,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """q, out `[T, Hq, D]`, sinks `[Hq]`; computes in `dtype`, one query token at a time."""
    tree = plan.tree
    size, device = tree.block_size, allocator.device
    k_slots, v_slots = (c[layer].flatten(0, 1) for c in (allocator.k_cache, allocator.v_cache))  # [slots, Hk, D]
    group = q.shape[1] // allocator.num_kv_heads
    for i, table in enumerate(torch.from_numpy(tree.tables).long().to(device)):
        length, first = int(tree.lengths[i]), int(tree.q_start[i])
        positions = torch.arange(length, device=device)
        slots = table[positions // size] * size + positions % size
        k = k_slots[slots].to(dtype).repeat_interleave(group, dim=1)  # [length, Hq, D]
        v = v_slots[slots].to(dtype).repeat_interleave(group, dim=1)
        for t in range(first, int(tree.q_start[i + 1])):
            stop = length - int(tree.q_start[i + 1]) + t + 1
            start = 0 if window is None else max(stop - window, 0)
            scores = torch.einsum("hd,jhd->hj", q[t].to(dtype), k[start:stop]) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat([scores, sinks.to(dtype)[:, None]], dim=1)
            weights = torch.softmax(scores, dim=1)[:, : stop - start]
            out[t] = torch.einsum("hj,jhd->hd", weights, v[start:stop]).to(out.dtype)
    return out
