"""A tree of branches to the work items of one kernel launch.

Queries are numbered depth first and cut into groups of a few rows; groups are cut into tiles. A narrow item streams
the blocks of one group; a wide item takes blocks that several groups of one tile share. A cost rule decides tile by
tile which blocks are worth a wide item, and for the whole whether wide items pay at all; long streams are split until
they fill the machine. Everything is numpy over nodes, tiles, groups and blocks; no work grows with tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .cost import CostRule, TileShape, ceil_div, choose_wide, narrow_chunk, wide_chunk
from .plan import TreePlan

NARROW, WIDE, MERGE = 1, 2, 3
ITEM_FIELDS = 32
"""kind, first entry, full keys, keys, first group, groups, owners lo (narrow: 1 if a merge item merges) and hi; then
for up to eight groups: the slot of the item's partial result, the group's first slot, its number of parts (of a merge
item: 0 where there is nothing to merge)."""
_GROUP0, _GROUPS, _DEFERRED, _SLOT, _FIRST_SLOT, _PARTS = 4, 5, 6, 8, 16, 24
_TABLES = np.array([[_SLOT], [_FIRST_SLOT], [_PARTS]])


@dataclass(frozen=True, slots=True)
class Schedule:
    """T query tokens, E entries (reads of a block, or of a part of one), I items. All int32 but the marks."""

    items: np.ndarray
    """`[I, ITEM_FIELDS]`, in launch order."""
    entry_block: np.ndarray
    """`[E]`: which entry of the pool."""
    entry_mark: np.ndarray
    """int64 `[E]`: first owner in the tile | owners << 8 | tokens that hold a key << 16 | branch position of its first
    token << 32."""
    entry_node: np.ndarray
    """`[E]`: the node whose tokens they are."""
    query_token: np.ndarray
    query_pos: np.ndarray
    """`[T]` depth first: the query's row of q; its branch position."""
    num_groups: int
    num_slots: int
    """Partial results."""


class _Pairs(NamedTuple):
    """Pairs of a node and a tile with queries below it, node after node. int64 but `covers`."""

    node: np.ndarray
    tile: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    """The tile's queries below the node."""
    group: np.ndarray
    groups: np.ndarray
    """The first group that these lie in, and how many do."""
    covers: np.ndarray
    """Whether they are all of the tile's queries."""


@dataclass(slots=True)
class _Streams:
    """Pairs of (node, tile or group), sorted by stream: the tile or group whose queries read the node's entries."""

    kind: int
    node: np.ndarray
    entries: np.ndarray
    owners: np.ndarray
    """Per pair: entries of the node that it reads; the first of the stream's queries that owns them | how many << 8."""
    count: np.ndarray
    group: np.ndarray
    groups: np.ndarray | int
    """Per stream: its entries, its first group, its number of groups."""
    full: np.ndarray | int = 0
    owners_lo: np.ndarray | int = 0
    owners_hi: np.ndarray | int = 0
    """Per stream: how many of its entries, from the front, every owner sees in full, and who these owners are."""


def _count_from(first: np.ndarray | int, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ..., counts[0] numbers in all, first[1], first[1] + 1, ..."""
    numbers = (first + counts - counts.cumsum()).repeat(counts)
    numbers += np.arange(len(numbers))
    return numbers


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values begin, and how long they are."""
    new = np.empty(len(values) + 1, bool)
    new[0] = new[-1] = True
    np.not_equal(values[1:], values[:-1], out=new[1:-1])
    edges = new.nonzero()[0]
    starts = edges[:-1]
    return starts, edges[1:] - starts


def schedule_tree(tree: TreePlan, shape: TileShape, heads: int, rule: CostRule) -> Schedule:
    """Work items for `heads` kv heads: each item is run once a head."""
    schedule = _schedule(tree, shape, heads, rule, apart=False)
    assert schedule is not None
    return schedule


def schedule_apart(tree: TreePlan, shape: TileShape, heads: int, rule: CostRule) -> Schedule | None:
    """The same with all wide items first, for a launch of their own beside that of the others. None where those would
    have less than a quarter of the work, so that too little would run beside the wide items."""
    return _schedule(tree, shape, heads, rule, apart=True)


def _schedule(tree: TreePlan, shape: TileShape, heads: int, rule: CostRule, *, apart: bool) -> Schedule | None:
    size, split = shape.entry, tree.block_size // shape.entry
    order = tree.order
    lengths = tree.lengths[order]
    total = tree.num_queries
    query_lo, query_hi = tree.node_lo.astype(np.int64), tree.node_hi.astype(np.int64)
    node_start = tree.node_start.astype(np.int64) * split
    node_entries = tree.node_stop * split - node_start
    if total == len(order):
        query_token, query_pos = order, lengths - 1
        seen_by_first = lengths
        pairs = _pairs(query_lo, query_hi, total, shape)
        entries = node_entries[pairs.node]
    else:
        asked = tree.q_lens[order].astype(np.int64)
        query = np.zeros(len(order) + 1, np.int64)
        asked.cumsum(out=query[1:])
        query_token, query_pos = _count_from(tree.q_start[order], asked), _count_from(lengths - asked, asked)
        seen_by_first = lengths - asked + 1
        pairs = _pairs(query[query_lo], query[query_hi], total, shape)
        # Keys after the last query of the tile are seen by none.
        latest = np.maximum.reduceat(query_pos, np.arange(0, total, shape.tile_queries))
        seen = np.maximum(latest[pairs.tile] // size + 1 - node_start[pairs.node], 0)
        entries = np.minimum(seen, node_entries[pairs.node])
    num_groups = -(-total // shape.group_queries)
    wide = choose_wide(pairs.tile, pairs.groups, pairs.covers, entries * size, num_groups, heads, shape, rule)
    chosen, others = wide.nonzero()[0], (~wide).nonzero()[0]
    if apart and 4 * int(pairs.groups[others] @ entries[others]) < int(entries[chosen].sum()):
        return None

    spans = _spans(tree)
    streams: list[_Streams] = []
    if len(chosen):
        seen = _below(np.minimum, seen_by_first, spans) // size - node_start
        streams.append(_wide_streams(pairs, chosen, entries, seen, size, shape.group_queries, rule))
    if len(others):
        streams.append(_narrow_streams(pairs, others, entries, shape.group_queries))
    ranked: list[np.ndarray] = []
    offset = 0
    for stream in streams:
        busy = 0 if apart else heads * sum(map(len, ranked))
        ranked.append(_split(stream, offset, size, heads, shape, rule, busy))
        offset += int(stream.count.sum())
    records, num_slots = _record(_launch_order(ranked, heads, rule, apart), num_groups, shape.merge_groups)

    # Entries of a pair follow each other in its node.
    node, entries, owners = _joined(streams)
    of_node = node.astype(np.int32).repeat(entries)
    stops = entries.cumsum()
    start = node_start[node]
    index = (start + entries - stops).repeat(entries)
    index += np.arange(offset)
    row = (order[tree.node_lo] * tree.tables.shape[1])[node].repeat(entries)
    if split == 1:
        block = tree.tables.ravel().take(row + index)
    else:
        block = tree.tables.ravel().take(row + index // split) * split + index % split
    mark = (owners + (size << 16)).repeat(entries)
    mark += index * (size << 32)
    # Only the last block of a node may be held in part: take from its entries, the last first, what is missing.
    missing = (start + entries) * size - _below(np.maximum, lengths, spans)[node]
    for last in range(1, split + 1):
        part = (missing > 0).nonzero()[0]
        mark[stops[part] - last] -= np.minimum(missing[part], size) << 16
        missing -= size
    narrowed = (a.astype(np.int32, copy=False) for a in (block, query_token, query_pos))
    block, query_token, query_pos = narrowed
    return Schedule(records, block, mark, of_node, query_token, query_pos, num_groups, num_slots)


def grown(schedule: Schedule, before: TreePlan, tree: TreePlan, size: int) -> Schedule | None:
    """`schedule` of the tree `before` with the lengths of `tree`; None if more than lengths changed, or where a branch
    has several queries, whose keys depend on lengths. `size`: tokens of an entry."""
    same = (
        tree.branch_ids == before.branch_ids
        and tree.tables.shape == before.tables.shape
        and bool((tree.q_lens == 1).all() and (before.q_lens == 1).all())
        and np.array_equal(tree.tables, before.tables)
    )
    if not same:
        return None
    lengths = tree.lengths[tree.order]
    longest = _below(np.maximum, lengths, _spans(tree))[schedule.entry_node]
    held = np.minimum(np.maximum(longest - (schedule.entry_mark >> 32), 0), size)
    mark = schedule.entry_mark & ~0xFFFF0000 | held << 16
    return replace(schedule, entry_mark=mark, query_pos=lengths - 1)


def _spans(tree: TreePlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `_below`. The first branch below each node; the nodes above several branches; and of these the first branch
    and the one after the last, node after node. No nodes above several where it does not matter: with one query each,
    branches that all end in a node of their own hold and see the whole of every node above."""
    inner = (tree.node_hi - tree.node_lo > 1).nonzero()[0]
    branches = len(tree.order)
    if len(tree.node_lo) - len(inner) == branches == tree.num_queries:
        inner = inner[:0]
    spans = np.empty(2 * len(inner), np.int64)
    spans[::2], spans[1::2] = tree.node_lo[inner], tree.node_hi[inner]
    return tree.node_lo, inner, spans


def _below(of_two: np.ufunc, of_branch: np.ndarray, spans: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Per node: the least or largest (`of_two`) of the branches below it, which are given depth first."""
    first, inner, edges = spans
    below = of_branch[first]
    if len(inner):
        padded = np.zeros(len(of_branch) + 1, of_branch.dtype)
        padded[:-1] = of_branch
        below[inner] = of_two.reduceat(padded, edges)[::2]
    return below


def _pairs(query_lo: np.ndarray, query_hi: np.ndarray, total: int, shape: TileShape) -> _Pairs:
    """All there are. Per node: the queries below it."""
    tile_queries, group_queries = shape.tile_queries, shape.group_queries
    first = query_lo // tile_queries
    tiles = (query_hi - 1) // tile_queries + 1 - first
    node = np.arange(len(tiles)).repeat(tiles)
    tile = _count_from(first, tiles)
    bounds = np.arange(0, total + tile_queries, tile_queries)
    bounds[-1] = total
    tile_lo, tile_hi = bounds[tile], bounds[1:][tile]
    lo, hi = np.maximum(query_lo[node], tile_lo), np.minimum(query_hi[node], tile_hi)
    group = lo // group_queries
    groups = (hi - 1) // group_queries + 1 - group
    return _Pairs(node, tile, lo, hi, group, groups, (lo == tile_lo) & (hi == tile_hi))


def _narrow_streams(pairs: _Pairs, chosen: np.ndarray, entries: np.ndarray, group_queries: int) -> _Streams:
    """One stream a group. `entries`: of all pairs."""
    group, groups = pairs.group[chosen], pairs.groups[chosen]
    if groups.max() > 1:
        chosen, group = chosen.repeat(groups), _count_from(group, groups)
    by_group = group.argsort(kind="stable")
    group, chosen = group[by_group], chosen[by_group]
    starts, _ = _runs(group)
    entries = entries[chosen]
    query0 = group * group_queries
    lo, hi = np.maximum(pairs.lo[chosen], query0), np.minimum(pairs.hi[chosen], query0 + group_queries)
    owners = lo - query0 | hi - lo << 8
    return _Streams(NARROW, pairs.node[chosen], entries, owners, np.add.reduceat(entries, starts), group[starts], 1)


def _wide_streams(
    pairs: _Pairs, chosen: np.ndarray, entries: np.ndarray, seen: np.ndarray, size: int, group_queries: int,
    rule: CostRule,
) -> _Streams:  # fmt: skip
    """One stream a tile, and one more for each long run of entries that the same part of the tile shares. `entries`: of
    all pairs. `seen`: per node, entries of it that every query below it sees."""
    if len(chosen) < len(entries):
        pairs, entries = _Pairs(*(a[chosen] for a in pairs)), entries[chosen]
    node, tile, lo, hi, group, groups, covers = pairs
    own, stream = np.zeros(len(tile), bool), tile
    part = (~covers).nonzero()[0]
    if len(part):
        span = int(hi.max()) + 1
        same = (tile[part] * span + lo[part]) * span + hi[part]
        by_part = same.argsort(kind="stable")
        part, same = part[by_part], same[by_part]
        starts, sizes = _runs(same)
        long_run = np.add.reduceat(entries[part], starts) * size >= rule.own_run
        chosen = long_run.repeat(sizes)
        part = part[chosen]
        own[part] = True
        stream = tile * (span * span)
        stream[part] = same[chosen]
    full = np.minimum(np.maximum(seen[node], 0), entries) * (covers | own)
    # Pairs that all owners see come first, then the one that they see in part, then those that need a mask.
    masked = full < entries
    by_stream = (stream * 3 + masked * (1 + (full == 0))).argsort(kind="stable")
    starts, sizes = _runs(stream[by_stream])
    node, lo, hi, group, groups, entries = (a[by_stream] for a in (node, lo, hi, group, groups, entries))
    first, groups = np.minimum.reduceat(group, starts), np.maximum.reduceat(group + groups, starts)
    groups -= first
    query0 = first * group_queries
    count = np.add.reduceat(entries, starts)
    full = _leading(full[by_stream], entries, starts) if np.count_nonzero(masked) else count
    owners = lo - query0.repeat(sizes) | hi - lo << 8
    own = own[by_stream[starts]]
    owners_lo = (lo[starts] - query0) * own
    owners_hi = np.where(own, hi[starts] - query0, groups * group_queries)
    return _Streams(WIDE, node, entries, owners, count, first, groups, full, owners_lo, owners_hi)


def _leading(full: np.ndarray, entries: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Per stream: entries from its front that every owner sees in full, which ends with the first pair of which they
    see only a part."""
    whole = full == entries
    counts = whole.copy()
    counts[1:] |= whole[:-1]
    counts[starts] = True
    return np.add.reduceat(full * counts, starts)


def _joined(streams: list[_Streams]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """node, entries and owners of the pairs of all streams."""
    if len(streams) == 1:
        return streams[0].node, streams[0].entries, streams[0].owners
    node, entries, owners = (
        np.concatenate([getattr(s, name) for s in streams]) for name in ("node", "entries", "owners")
    )
    return node, entries, owners


def _split(
    stream: _Streams, offset: int, size: int, heads: int, shape: TileShape, rule: CostRule, busy: int
) -> np.ndarray:
    """int32 `[items, 8]`: the first fields of the streams' items, cut into whole rounds, long ones first. `offset`:
    entries before."""
    count = stream.count
    wide = stream.kind == WIDE
    keys = shape.wide_keys if wide else shape.narrow_keys
    align = max(keys // size, 1)
    number: np.ndarray | int | None = rule.wide_items if wide else rule.narrow_items
    if number is None:
        width = size * rule.scale
        most = (
            wide_chunk(count, align, width, heads, rule) if wide
            else narrow_chunk(count, align, width, heads, rule, busy)
        )  # fmt: skip
        number = ceil_div(count, most) if most < count.max() else 1
    of, begin, length = _pieces(count, number, align)
    items = np.zeros((len(of), 8), np.int32)
    items[:, 0] = stream.kind
    items[:, 1] = (count.cumsum() - count)[of] + (begin + offset)
    items[:, 3] = length * size
    items[:, 4] = stream.group[of]
    if not wide:
        items[:, 5] = 1
        return items
    items[:, 2] = np.minimum(np.maximum(stream.full[of] - begin, 0), length) * size // keys * keys
    items[:, 5] = stream.groups[of]
    items[:, 6] = stream.owners_lo[of]
    items[:, 7] = stream.owners_hi[of]
    return items


def _pieces(count: np.ndarray, number: np.ndarray | int, align: int) -> tuple[np.ndarray, np.ndarray | int, np.ndarray]:
    """Streams of `count` entries in at most `number` pieces of whole rounds, long ones first. Per piece: its stream,
    its first entry in it, its entries."""
    if isinstance(number, int) and number == 1:
        of = (-count).argsort(kind="stable")
        return of, 0, count[of]
    chunk = np.maximum(ceil_div(ceil_div(count, number), align) * align, 1)
    number = ceil_div(count, chunk)
    of = np.arange(len(count)).repeat(number)
    chunk = chunk[of]
    begin = _count_from(0, number) * chunk
    length = np.minimum(count[of] - begin, chunk)
    by_length = (-length).argsort(kind="stable")
    return of[by_length], begin[by_length], length[by_length]


def _launch_order(ranked: list[np.ndarray], heads: int, rule: CostRule, apart: bool) -> np.ndarray:
    """All items. A first wave of wide items takes a place on every multiprocessor; after it wide and narrow ones
    alternate so that tensor-bound and memory-bound work run side by side to the end."""
    if len(ranked) == 1:
        return ranked[0]
    wide, narrow = ranked
    if apart:
        return np.concatenate(ranked)
    wave = max(rule.multiprocessors // heads, 1)
    progress = [items[:, 3].cumsum() / items[:, 3].sum() for items in (wide[wave:], narrow) if len(items)]
    rest = np.concatenate([wide[wave:], narrow])
    return np.concatenate([wide[:wave], rest[np.concatenate(progress).argsort(kind="stable")]])


def _record(items: np.ndarray, num_groups: int, merge_groups: int) -> tuple[np.ndarray, int]:
    """`Schedule.items` and the number of slots: where each item leaves its part of each of its groups. Groups with wide
    parts are merged by items of their own, `merge_groups` at once, after all others."""
    count, wide, group0, groups = len(items), items[:, 0] == WIDE, items[:, _GROUP0], items[:, _GROUPS]
    item, place = np.arange(count).repeat(groups), _count_from(0, groups)
    of_group = group0[item] + place
    parts = np.bincount(of_group, minlength=num_groups)
    first_slot = parts.cumsum() - parts
    slot = np.empty(len(item), np.int64)
    slot[of_group.argsort(kind="stable")] = np.arange(len(item))

    deferred = np.zeros(num_groups, bool)
    deferred[of_group[wide[item]]] = True
    deferred &= parts > 1
    first = deferred.nonzero()[0]
    if merge_groups > 1:
        first = np.unique(first // merge_groups) * merge_groups

    records = np.zeros((count + len(first), ITEM_FIELDS), np.int32)
    records[:count, :8] = items
    tables = np.array([slot, first_slot[of_group], parts[of_group]])
    records.ravel()[item * ITEM_FIELDS + place + _TABLES] = tables
    if len(first):
        records[:count, _DEFERRED] += deferred[group0] & ~wide
        merges = records[count:]
        merges[:, 0], merges[:, _GROUP0] = MERGE, first
        merges[:, _GROUPS] = np.minimum(num_groups - first, merge_groups)
        group = np.minimum(first[:, None] + np.arange(merge_groups), num_groups - 1)
        merges[:, _FIRST_SLOT : _FIRST_SLOT + merge_groups] = first_slot[group]
        merges[:, _PARTS : _PARTS + merge_groups] = (parts * deferred)[group]
    return records, len(item)
