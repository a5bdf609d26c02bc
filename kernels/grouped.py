"""The same tree attention from torch's batched matrix products: the CPU's path.

Each query's keys are cut into chunks at absolute positions (see `tiles`). A tile of queries over one chunk gives, per
query and head, a softmax-weighted mean of V and the logarithm of its weight; a query's means are then summed by
position, weighted by a softmax over those logarithms (and the sink). Computed in fp32 whatever the cache holds, but for
the products of `fused`. Results are the same bits whatever else is in the batch, in whatever order and however it is
shared, because every step works on rows by themselves; for the matrix products, where that takes enough rows,
`grouped_work` tests it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import frexp

import numpy as np
import torch

from .allocator import PhysicalKVAllocator
from .fused import FusedBatch, fused_rows
from .grouped_work import CHUNK, Slab, lay_out
from .plan import TreePlan


@dataclass(slots=True)
class GroupedPlan:
    """The tree, and its tiles for each (window, query heads, rows of D numbers from query to query, fused rows) asked
    for."""

    tree: TreePlan
    backend: str = "torch"
    _work: dict[tuple[int | None, int, int, int], list[Slab]] = field(default_factory=dict, repr=False)
    _threads: int = field(default_factory=torch.get_num_threads)
    """Which the tiles are cut for."""

    @property
    def branch_ids(self) -> tuple[int, ...]:
        return self.tree.branch_ids

    @property
    def num_queries(self) -> int:
        return self.tree.num_queries

    def grown(self, allocator: PhysicalKVAllocator) -> GroupedPlan | None:
        """The plan of the same branches, each of which asks with its last token and has grown by one, in the memory of
        this one, which is not to be used any more. None where that takes other tiles.

        A step of a search takes as long to plan as a layer to compute where few branches grow.
        """
        tree = self.tree
        tables, lengths, _ = allocator.layout(tree.branch_ids)
        width = tree.tables.shape[1]
        if (
            self._threads != torch.get_num_threads()
            or tree.num_queries != len(lengths)
            or not np.array_equal(lengths, tree.lengths + 1)
            or ((lengths - 1) % CHUNK == 0).any()
            or not np.array_equal(np.where(tree.tables >= 0, tables[:, :width], -1), tree.tables)
        ):
            return None
        for (window, *_), slabs in self._work.items():
            batches = [batch for slab in slabs for batch in slab.batches if batch.hidden is not None]
            tails = [batch.tails for batch in batches if batch.tails is not None]
            if window is not None or len(tails) < len(batches) or sum(len(t.seen) for t in tails) < len(lengths):
                return None
            if any(t.seen.max() >= t.slots.shape[1] for t in tails):
                return None
        for slabs in self._work.values():
            for slab in slabs:
                for batch in slab.batches:
                    if batch.tails is not None:
                        batch.tails.grow(tables, lengths, tree.block_size)
        return GroupedPlan(replace(tree, lengths=lengths.astype(np.int32), tables=tables), _work=self._work)


def plan_grouped(allocator: PhysicalKVAllocator, tree: TreePlan) -> GroupedPlan:
    """A plan whose tiles are cut on first use and serve every layer."""
    return GroupedPlan(tree)


def attend_grouped(
    q: torch.Tensor,
    allocator: PhysicalKVAllocator,
    plan: GroupedPlan,
    *,
    layer: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """q, out `[T, Hq, D]`, sinks `[Hq]`; the formula is that of `reference`. Without `out` a new tensor in fp32."""
    heads, dim = q.shape[1:]
    fused = fused_rows(allocator.dtype, dim, allocator.device) if softcap is None else 0
    asked = q.to(allocator.dtype) if fused else q.float()
    if not fused and frexp(scale)[0] != 0.5:
        # A product scales its factors or its result, by its shape; only a power of two is the same bits either way.
        asked, scale = asked * scale, 1.0
    if asked.stride(2) != 1 or asked.stride(1) != dim or asked.stride(0) % dim:
        asked = asked.contiguous()
    pitch = asked.stride(0) // dim
    key = window, heads, pitch, fused
    work = plan._work.get(key)
    if work is None:
        work = plan._work[key] = lay_out(plan.tree, allocator, *key)
    stored = allocator.rows_from(layer, by_token=allocator.dtype != torch.float32)
    queries = asked.as_strided(((len(asked) - 1) * pitch + heads, dim), (dim, 1))
    whole = len(work) == 1 and work[0].queries is None
    if not whole and out is None:
        out = q.new_empty(q.shape, dtype=torch.float32)
    for slab in work:
        result = _attend_slab(queries, len(slab.first), stored, slab, scale, softcap, sinks).view(-1, heads, dim)
        if out is None:
            return result
        if slab.queries is None:
            out.copy_(result)
        else:
            out.index_copy_(0, slab.queries, result.to(out.dtype))
    assert out is not None
    return out


def _attend_slab(
    queries: torch.Tensor,
    asked: int,
    stored: torch.Tensor,
    slab: Slab,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """queries: rows of D numbers, with those of all heads; asked: t * Hq; stored: K and V from the layer on.
    Returns `[t * Hq, D]` fp32."""
    alone = slab.pieces == 1 and sinks is None  # then each query has one piece, whose share is 1
    has_logs = False
    for batch in slab.batches:
        if isinstance(batch, FusedBatch):
            batch.attend(queries, stored, scale)
            has_logs = True
            continue
        scores = batch.scores
        if batch.q_rows is not None:
            torch.index_select(queries, 0, batch.q_rows, out=batch.q)
        torch.index_select(stored, 0, batch.kv_rows, out=batch.stored)
        if batch.exact is not None:
            batch.exact[0].copy_(batch.exact[1])
        torch.baddbmm(scores, batch.queries, batch.keys, beta=0, alpha=scale, out=scores)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if batch.hidden is not None:
            batch.masked.add_(batch.hidden)
        if not alone:
            torch.amax(scores, 2, out=batch.largest)
        torch.softmax(scores, 2, out=scores)
        if not alone:
            torch.amax(scores, 2, out=batch.peaks)
        torch.bmm(scores, batch.values, out=batch.means)
    if alone:
        return slab.means.index_select(0, slab.first)
    if not has_logs:  # the largest weight is 1 / sum(exp(score - largest score))
        torch.log(slab.peaks, out=slab.logs)
        torch.sub(slab.largest, slab.logs, out=slab.logs)
    shares = torch.index_select(slab.logs, 0, slab.pieces_of, out=slab.shares).view(asked, -1)
    if sinks is not None:
        shares[:, 0] = sinks.float().repeat(asked // len(sinks))
    torch.softmax(shares, 1, out=shares)
    # Sums the means of each query, times their shares, without those that stand for no piece: mode 0 is a sum.
    weights = shares[:, : slab.pieces + 1].reshape(-1)
    merged: torch.Tensor = torch.embedding_bag(slab.means, slab.members, slab.bags, False, 0, False, weights, False)[0]
    return merged
