"""The same tree attention from torch's batched matrix products: the CPU's path.

Each query's keys are cut into chunks at absolute positions (see `tiles`). A tile of queries over one chunk gives, per
query and head, a softmax-weighted mean of V and the logarithm of its weight; a query's means are then summed by
position, weighted by a softmax over those logarithms (and the sink). Computed in fp32 whatever the cache
holds. Results are the same bits whatever else is in the batch, in whatever order and however it is shared, because
every step works on rows by themselves; for the matrix products, where that takes enough rows, `_least_rows` tests it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from .allocator import PhysicalKVAllocator
from .plan import TreePlan
from .tiles import TileBatch, TileSlab, cut_tiles

CHUNK = 64
"""Keys a chunk. Wider chunks read more shared keys once a branch instead of once; narrower ones sum more pieces."""
_SLAB_BYTES = 16 << 20
"""Partial results of the queries that are computed together, about: more of them read a shared chunk at once."""
_BATCH_BYTES = 4 << 20
"""Operands and results of one batched product, about: enough to pay for the calls, little enough to stay cached."""
_LANES = 16
"""Softmax over rows of a multiple of this many, ended by -inf, sums in an order that the padding does not change."""


@dataclass(slots=True)
class GroupedPlan:
    """The tree, and its tiles for each (window, query heads) that has been asked for."""

    tree: TreePlan
    backend: str = "torch"
    _work: dict[tuple[int | None, int], list[_Slab]] = field(default_factory=dict, repr=False)

    @property
    def branch_ids(self) -> tuple[int, ...]:
        return self.tree.branch_ids

    @property
    def num_queries(self) -> int:
        return self.tree.num_queries


@dataclass(frozen=True, slots=True)
class _Batch:
    """n tiles: index tensors into rows of D numbers, for Hk kv heads, M = R * rows a query, C keys."""

    q_rows: torch.Tensor
    """int64 `[n * Hk * M]` into the slab's queries, (query, head) after (query, head)."""
    kv_rows: torch.Tensor
    """int64 `[2 * n * Hk * C]` into the cache from a layer on, (slot, kv head) after (slot, kv head): K, then V."""
    hidden: torch.Tensor | None
    """float32 `[masked, 1, R, 1, C]`: -inf where the key must not be seen."""
    shape: tuple[int, int, int, int]
    """n, Hk, R, rows a query."""


@dataclass(frozen=True, slots=True)
class _Slab:
    queries: torch.Tensor | None
    """int64 `[t]` into all queries; None where that would change nothing."""
    batches: tuple[_Batch, ...]
    rows: int
    """Partial results of all batches; one empty row follows them."""
    merge: torch.Tensor
    """int64 `[pieces * t * Hq]`: the partial results of the first piece, of the second, ... or the empty row."""
    weigh: torch.Tensor
    """int64 `[t * Hq * lanes]`: entry 0 of each (query, head) is the empty row, then its pieces, then the empty row."""
    pieces: int


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
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """q, out `[T, Hq, D]`, sinks `[Hq]`; the formula is that of `reference`."""
    heads, dim = q.shape[1:]
    work = plan._work.get((window, heads))
    if work is None:
        work = plan._work[window, heads] = _lay_out(plan.tree, allocator, window, heads)
    scaled = q.float() * scale
    for slab in work:
        queries = scaled if slab.queries is None else scaled.index_select(0, slab.queries)
        result = _attend_slab(queries.reshape(-1, dim), allocator, layer, slab, softcap, sinks).view(-1, heads, dim)
        if slab.queries is None:
            out.copy_(result)
        else:
            out.index_copy_(0, slab.queries, result.to(out.dtype))
    return out


def _attend_slab(
    queries: torch.Tensor,
    allocator: PhysicalKVAllocator,
    layer: int,
    slab: _Slab,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """queries `[t * Hq, D]` fp32, scaled. Returns `[t * Hq, D]` fp32."""
    dim = queries.shape[1]
    scratch = allocator.scratch
    alone = slab.pieces == 1 and sinks is None  # then each query has one piece, whose share is 1
    means = scratch("means", slab.rows + 1, dim)
    means[-1] = 0
    logs = scratch("logs", slab.rows + 1)
    logs[-1] = -torch.inf
    begin = 0
    for batch in slab.batches:
        n, kv_heads, tile_queries, query_rows = batch.shape
        m = tile_queries * query_rows
        end = begin + n * kv_heads * m
        q = scratch("q", n * kv_heads * m, dim)
        torch.index_select(queries, 0, batch.q_rows, out=q)
        k, v = _gather(allocator, layer, batch.kv_rows).view(2, n * kv_heads, CHUNK, dim)
        scores = scratch("scores", n * kv_heads, m, CHUNK)
        torch.bmm(q.view(n * kv_heads, m, dim), k.transpose(1, 2), out=scores)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if batch.hidden is not None:
            scores.view(n, kv_heads, tile_queries, query_rows, CHUNK)[: len(batch.hidden)] += batch.hidden
        largest = None if alone else scores.amax(2)
        weights = torch.softmax(scores, 2, out=scores)
        if largest is not None:
            # The largest weight is 1 / sum(exp(score - largest score)).
            torch.sub(largest, weights.amax(2).log_(), out=logs[begin:end].view(n * kv_heads, m))
        torch.bmm(weights, v, out=means[begin:end].view(n * kv_heads, m, dim))
        begin = end
    if alone:
        return means.index_select(0, slab.merge)
    logs = logs.index_select(0, slab.weigh).view(len(queries), -1)
    if sinks is not None:
        logs[:, 0] = sinks.float().repeat(len(queries) // len(sinks))
    shares = torch.softmax(logs, 1)[:, 1 : slab.pieces + 1]  # [t * Hq, pieces]
    terms = scratch("terms", slab.pieces * len(queries), dim)
    torch.index_select(means, 0, slab.merge, out=terms)
    terms = terms.view(slab.pieces, len(queries), dim)
    terms *= shares.t()[:, :, None]
    return terms.sum(0)


def _gather(allocator: PhysicalKVAllocator, layer: int, rows: torch.Tensor) -> torch.Tensor:
    """float32 `[len(rows), D]`: rows of the K and V of a layer, in scratch memory. One gather for both."""
    cache = allocator.kv_cache  # [2, layers, blocks, size, Hk, D]
    dim = cache.shape[-1]
    gathered = allocator.scratch("kv", len(rows), dim, dtype=cache.dtype)
    torch.index_select(cache.view(-1, dim)[layer * (cache[0, 0].numel() // dim) :], 0, rows, out=gathered)
    if cache.dtype == torch.float32:
        return gathered
    return allocator.scratch("kv float32", len(rows), dim).copy_(gathered)


def _lay_out(tree: TreePlan, allocator: PhysicalKVAllocator, window: int | None, heads: int) -> list[_Slab]:
    slab_pieces = max(_SLAB_BYTES // (heads * 2 * (CHUNK + allocator.head_dim) * 4), 1)
    slabs = cut_tiles(tree, CHUNK, window, slab_pieces)
    in_order = len(slabs) == 1 and np.array_equal(slabs[0].queries, np.arange(tree.num_queries))
    return [_slab(slab, allocator, heads, in_order) for slab in slabs]


def _slab(slab: TileSlab, allocator: PhysicalKVAllocator, heads: int, in_order: bool) -> _Slab:
    kv_heads, device = allocator.num_kv_heads, allocator.device
    group = heads // kv_heads
    head = np.arange(heads)
    queries = len(slab.queries)
    threads = torch.get_num_threads()
    least_rows = _least_rows(allocator.head_dim, threads, device.type)
    least_tiles = -(-threads // kv_heads)
    batches: list[_Batch] = []
    rows = 0
    merge = np.full((slab.pieces, queries, heads), -1, np.int64)
    for batch in slab.batches:
        tile_queries = batch.queries.shape[1]
        query_rows = max(group, -(-least_rows // tile_queries))
        n = max(len(batch.queries), least_tiles)
        batches.extend(_batches(batch, n, least_tiles, query_rows, allocator, heads))
        first = rows + (batch.tile * kv_heads * tile_queries + batch.place) * query_rows
        merge[batch.piece, batch.query] = first[:, None] + head // group * tile_queries * query_rows + head % group
        rows += n * kv_heads * tile_queries * query_rows
    merge[merge < 0] = rows
    lanes = -(-(slab.pieces + 1) // _LANES) * _LANES
    weigh = np.full((queries, heads, lanes), rows, np.int64)
    weigh[:, :, 1 : slab.pieces + 1] = merge.transpose(1, 2, 0)
    return _Slab(
        queries=None if in_order else _tensor(slab.queries, device),
        batches=tuple(batches),
        rows=rows,
        merge=_tensor(merge.reshape(-1), device),
        weigh=_tensor(weigh.reshape(-1), device),
        pieces=slab.pieces,
    )


def _batches(
    batch: TileBatch, n: int, least_tiles: int, query_rows: int, allocator: PhysicalKVAllocator, heads: int
) -> Iterator[_Batch]:
    """The tiles, repeated up to `n`, in parts that stay cached. Rows past a query's last head repeat that head."""
    kv_heads, dim, device = allocator.num_kv_heads, allocator.head_dim, allocator.device
    tile_queries = batch.queries.shape[1]
    queries, slots = (np.resize(a, (n, a.shape[1])) for a in (batch.queries, batch.slots))
    group = heads // kv_heads
    head = np.arange(kv_heads)[:, None] * group + np.minimum(np.arange(query_rows), group - 1)  # [Hk, rows]
    q_rows = _tensor(queries[:, None, :, None] * heads + head[:, None, :], device)  # [n, Hk, R, rows]
    k_rows = slots[:, None, :] * kv_heads + np.arange(kv_heads)[:, None]  # [n, Hk, C]
    to_v = allocator.k_cache.numel() // dim
    masked = len(batch.hidden)
    hidden = torch.zeros(batch.hidden.shape).masked_fill_(torch.from_numpy(batch.hidden), -torch.inf)
    hidden = hidden[:, None, :, None].to(device)
    m = tile_queries * query_rows
    tile_bytes = kv_heads * 4 * 2 * (CHUNK * dim + m * (CHUNK + dim))
    parts = max(n // max(_BATCH_BYTES // tile_bytes, least_tiles, 1), 1)
    for part in range(parts):
        lo, hi = n * part // parts, n * (part + 1) // parts
        yield _Batch(
            q_rows[lo:hi].reshape(-1),
            _tensor(np.stack((k_rows[lo:hi], k_rows[lo:hi] + to_v)).reshape(-1), device),
            hidden[lo:hi] if lo < masked else None,
            (hi - lo, kv_heads, tile_queries, query_rows),
        )


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@lru_cache
def _least_rows(dim: int, threads: int, device: str) -> int:
    """The fewest rows from which on the rows of `torch.bmm` do not depend on how many rows and matrices there are.

    Fewer rows take other code (one row is a matrix-vector product), which sums in another order. Found by trial for
    this head dim and number of threads, with at least as many matrices as threads: of fewer, threads would share one.
    32 if no count passes.
    """
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(threads + 1, rows, columns, generator=generator).to(device)

    products = [(random(128, dim), random(CHUNK, dim).transpose(1, 2)), (random(128, CHUNK), random(CHUNK, dim))]
    wholes = [torch.bmm(left, right) for left, right in products]
    for least in (4, 8, 16):
        if all(
            torch.equal(torch.bmm(left[:n, first : first + rows], right[:n]), whole[:n, first : first + rows])
            for (left, right), whole in zip(products, wholes, strict=True)
            for rows in (least, least + 1, 2 * least - 1, 2 * least, 3 * least, 64)
            for first in (0, 5)
            for n in (threads, threads + 1)
        ):
            return least
    return 32
