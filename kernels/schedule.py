"""A tree of branches to the work items of one kernel launch.

Queries are numbered depth first and cut into groups of a few rows; groups are cut into tiles. A narrow item streams
the blocks of one group; a wide item takes blocks that several groups of one tile share. A cost rule decides tile by
tile which blocks are worth a wide item, and for the whole whether wide items pay at all; long streams are split until
they fill the machine. Everything is numpy over nodes, tiles, groups and blocks; no work grows with tokens.

From step to step most trees only grow at their ends. What follows from no more than who is below which node, or from
what wide items read, is kept: functions with a cache take arrays as bytes, or as `Same` where they are large, and what
they return is never written to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .cost import CostRule, TileShape, ceil_div, choose_wide, narrow_chunk, wide_chunk
from .plan import TreePlan

NARROW, WIDE, MERGE = 1, 2, 3
ITEM_FIELDS = 32
"""kind, first entry, full keys, keys, first group, groups, owners lo (narrow: 1 if a merge item merges) and hi; then
for up to eight groups: the slot of the item's partial result, the group's first slot, its number of parts (of a merge
item: 0 where there is nothing to merge)."""
_GROUP0, _GROUPS, _DEFERRED, _SLOT, _FIRST_SLOT, _PARTS = 4, 5, 6, 8, 16, 24
_KEPT = 4
"""Results that each cache holds."""


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
    run_node: np.ndarray
    run_entries: np.ndarray
    """Of each run of entries that follow each other in a node: the node, and how many they are. int64."""
    query_token: np.ndarray
    query_pos: np.ndarray
    """`[T]` depth first: the query's row of q; its branch position."""
    num_groups: int
    num_slots: int
    """Partial results."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Pairs of a node and a tile with queries below it, node after node. int64 but `covers`."""

    node: np.ndarray
    tile: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    """The tile's queries below the node."""
    covers: np.ndarray
    """Whether they are all of the tile's queries."""
    spans: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Of all nodes, see `spans_of`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Streams:
    """Pairs sorted by stream: the tile or group whose queries read the entries of the pairs' nodes."""

    pair: np.ndarray
    owners: np.ndarray
    """Per pair: its number; the first of the stream's queries that owns the entries | how many do << 8."""
    starts: np.ndarray
    group: np.ndarray
    """Per stream: its first pair, its first group."""
    wide: _Wide | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Wide:
    """Of each wide stream: its number of groups; how many of its entries, from the front, every owner sees in full, and
    who these owners are."""

    groups: np.ndarray
    full: np.ndarray
    owners_lo: np.ndarray
    owners_hi: np.ndarray


class Same:
    """An array that is told apart by which it is, not by what it holds: a tree that grows has the same ones."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.array is other.array

    def __hash__(self) -> int:
        return id(self.array)


def count_from(first: np.ndarray | int, counts: np.ndarray) -> np.ndarray:
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
    lengths = tree.lengths.take(order)
    total = tree.num_queries
    asked = None if total == len(order) else tree.q_lens[order].astype(np.int64)
    per_branch = None if asked is None else asked.tobytes()
    pairs = pairs_of(Same(tree.node_lo), Same(tree.node_hi), per_branch, total, shape.tile_queries)
    _, groups = _groups_of(pairs, shape.group_queries)
    node_start = tree.node_start.astype(np.int64) * split
    entries = (tree.node_stop * split - node_start)[pairs.node]
    if asked is None:
        query_token, query_pos = order, lengths - 1
        seen_by_first = lengths
    else:
        query_token, query_pos = count_from(tree.q_start[order], asked), count_from(lengths - asked, asked)
        seen_by_first = lengths - asked + 1
        # Keys after the last query of the tile are seen by none.
        latest = np.maximum.reduceat(query_pos, np.arange(0, total, shape.tile_queries))
        seen = np.maximum(latest[pairs.tile] // size + 1 - node_start[pairs.node], 0)
        entries = np.minimum(seen, entries)
        query_token, query_pos = query_token.astype(np.int32), query_pos.astype(np.int32)
    num_groups = -(-total // shape.group_queries)
    wide = choose_wide(pairs.tile, groups, pairs.covers, entries * size, num_groups, heads, shape, rule)
    chosen = wide.nonzero()[0]
    shared = entries[chosen]
    offset = int(shared.sum())
    if apart:
        rest = int(groups @ entries) - int(groups[chosen] @ shared)
        if 4 * rest < offset:
            return None

    ranked: list[np.ndarray] = []
    if len(chosen):
        node = pairs.node[chosen]
        seen = below(np.minimum, seen_by_first, pairs.spans)[node] // size - node_start[node]
        seen = np.minimum(np.maximum(seen, 0), shared)
        reads = np.array([pairs.lo[chosen], pairs.hi[chosen], shared, seen], np.int32)
        stream, items, parts = _wide_part(reads.tobytes(), total, heads, shape, rule)
        pair, owners, deferred = chosen[stream.pair], stream.owners, parts > 1
        ranked.append(items)
    if len(chosen) < len(wide):
        stream = _narrow_streams(pairs, wide.tobytes(), shape.group_queries)
        busy = heads * len(ranked[0]) if ranked and not apart else 0
        items = _split(stream, entries[stream.pair], offset, heads, shape, rule, busy)
        more = np.bincount(items[:, _GROUP0], minlength=num_groups)
        if ranked:
            met, parts = parts > 0, parts + more
            deferred = met & (parts > 1)
            items[:, _DEFERRED] = deferred.take(items[:, _GROUP0])
            pair, owners = np.concatenate([pair, stream.pair]), np.concatenate([owners, stream.owners])
        else:
            pair, owners, parts, deferred = stream.pair, stream.owners, more, np.zeros(num_groups, bool)
        ranked.append(items)
    records, num_slots = _record(_launch_order(ranked, heads, rule, apart), parts, deferred, shape.merge_groups)

    # The entries of a pair follow each other, in the pool as in its node.
    node = pairs.node[pair]
    entries, start = entries[pair], node_start[node]
    stops = entries.cumsum()
    number = np.arange(stops[-1])
    place = start + entries - stops  # of an entry in its branch, less its number
    row = (order.take(tree.node_lo) * tree.tables.shape[1])[node]
    tables = tree.tables.ravel()
    if split == 1:
        block = tables.take((row + place).repeat(entries) + number)
    else:
        index = place.repeat(entries) + number
        block = (tables.take(row.repeat(entries) + index // split) * split + index % split).astype(np.int32)
    mark = (owners + (size << 16) + place * (size << 32)).repeat(entries)
    mark += number * (size << 32)
    # Only the last block of a node may be held in part: take from its entries, the last first, what is missing.
    missing = (start + entries) * size - below(np.maximum, lengths, pairs.spans)[node]
    for last in range(1, split + 1):
        part = (missing > 0).nonzero()[0]
        if not len(part):
            break
        mark[stops[part] - last] -= np.minimum(missing[part], size) << 16
        missing -= size
    return Schedule(records, block, mark, node, entries, query_token, query_pos, num_groups, num_slots)


def only_longer(before: TreePlan, tree: TreePlan) -> bool:
    """Whether branches of one query each have grown inside their last blocks, and nothing else changed."""
    return (
        tree.branch_ids == before.branch_ids
        and tree.tables.shape == before.tables.shape
        and bool((tree.q_lens == 1).all() and (before.q_lens == 1).all())
        and np.array_equal(tree.tables, before.tables)
    )


def grown(schedule: Schedule, before: TreePlan, tree: TreePlan, size: int) -> Schedule | None:
    """`schedule` of the tree `before` with the lengths of `tree`; None if more than lengths changed, or where a branch
    has several queries, whose keys depend on lengths. `size`: tokens of an entry."""
    if not only_longer(before, tree):
        return None
    lengths = tree.lengths[tree.order]
    longest = below(np.maximum, lengths, spans_of(tree.node_lo, tree.node_hi, len(lengths)))
    longest = longest[schedule.run_node].repeat(schedule.run_entries)
    held = np.minimum(np.maximum(longest - (schedule.entry_mark >> 32), 0), size)
    mark = schedule.entry_mark & ~0xFFFF0000 | held << 16
    return replace(schedule, entry_mark=mark, query_pos=lengths - 1)


def spans_of(
    node_lo: np.ndarray, node_hi: np.ndarray, branches: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `below`. The first branch below each node; the nodes above several branches; and of these the first branch
    and the one after the last, node after node. None of these where so many `branches` all end in a node of their own:
    as they hold the whole of those above, it does not matter which is asked."""
    inner = (node_hi - node_lo > 1).nonzero()[0]
    if len(node_lo) - len(inner) == branches:
        inner = inner[:0]
    edges = np.empty(2 * len(inner), np.int64)
    edges[::2], edges[1::2] = node_lo[inner], node_hi[inner]
    return node_lo, inner, edges


def below(of_two: np.ufunc, of_branch: np.ndarray, spans: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Per node: the least or largest (`of_two`) of the branches below it, which are given depth first."""
    first, inner, edges = spans
    below = of_branch[first]
    if len(inner):
        padded = np.concatenate([of_branch, of_branch[:1]])  # an edge may be the end
        below[inner] = of_two.reduceat(padded, edges)[::2]
    return below


@lru_cache(maxsize=_KEPT)
def pairs_of(node_lo: Same, node_hi: Same, asked: bytes | None, total: int, tile_queries: int) -> _Pairs:
    """All that a tree has. Its `node_lo` and `node_hi`; int64 `[B]`, depth first, the queries of each branch, None if
    that is one each; how many there are."""
    lo, hi = node_lo.array.astype(np.int64), node_hi.array.astype(np.int64)
    spans = spans_of(lo, hi, total if asked is None else None)  # of several queries the first may not see all of a node
    if asked is not None:
        query = np.append(0, np.frombuffer(asked, np.int64).cumsum())
        lo, hi = query[lo], query[hi]
    first = lo // tile_queries
    tiles = (hi + (tile_queries - 1)) // tile_queries - first
    node = np.arange(len(tiles)).repeat(tiles)
    tile = count_from(first, tiles)
    begin = tile * tile_queries
    lo, hi = np.maximum(lo[node], begin), np.minimum(hi[node], begin + tile_queries)
    return _Pairs(node, tile, lo, hi, hi - lo == np.minimum(total - begin, tile_queries), spans)


@lru_cache(maxsize=_KEPT)
def _groups_of(pairs: _Pairs, group_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair the first group that its queries lie in, and how many do."""
    first = pairs.lo // group_queries
    return first, (pairs.hi + (group_queries - 1)) // group_queries - first


@lru_cache(maxsize=_KEPT)
def _narrow_streams(pairs: _Pairs, wide: bytes, group_queries: int) -> _Streams:
    """One stream a group, of the pairs that are not `wide` (bool)."""
    pair = (~np.frombuffer(wide, bool)).nonzero()[0]
    group, groups = (of_each[pair] for of_each in _groups_of(pairs, group_queries))
    several = groups.max() > 1
    if several:
        pair, group = pair.repeat(groups), count_from(group, groups)
    by_group = group.argsort(kind="stable")
    group, pair = group[by_group], pair[by_group]
    starts, _ = _runs(group)
    query0, lo, hi = group * group_queries, pairs.lo[pair], pairs.hi[pair]
    if several:
        lo, hi = np.maximum(lo, query0), np.minimum(hi, query0 + group_queries)
    return _Streams(pair, lo - query0 | hi - lo << 8, starts, group[starts])


@lru_cache(maxsize=_KEPT)
def _wide_part(
    reads: bytes, total: int, heads: int, shape: TileShape, rule: CostRule
) -> tuple[_Streams, np.ndarray, np.ndarray]:
    """The streams of the wide pairs, which are numbered from 0; their items; and int64, in how many of these each group
    has a part. int32 `[4, pairs]`: their queries as in `_Pairs`, the entries that they read, and how many of these
    every query below the node sees."""
    lo, hi, entries, seen = np.frombuffer(reads, np.int32).reshape(4, -1).astype(np.int64)
    stream = _wide_streams(lo, hi, entries, seen, total, shape, rule)
    items = _split(stream, entries[stream.pair], 0, heads, shape, rule, 0)
    group = count_from(items[:, _GROUP0], items[:, _GROUPS])
    return stream, items, np.bincount(group, minlength=-(-total // shape.group_queries))


def _wide_streams(
    lo: np.ndarray, hi: np.ndarray, entries: np.ndarray, seen: np.ndarray, total: int, shape: TileShape, rule: CostRule
) -> _Streams:
    """One stream a tile, and one more for each long run of entries that the same part of the tile shares."""
    tile = lo // shape.tile_queries
    covers = hi - lo == np.minimum(total - tile * shape.tile_queries, shape.tile_queries)
    own, stream = np.zeros(len(tile), bool), tile
    part = (~covers).nonzero()[0]
    if len(part):
        span = total + 1
        same = (lo * span + hi)[part]
        by_part = same.argsort(kind="stable")
        part, same = part[by_part], same[by_part]
        starts, sizes = _runs(same)
        long_run = np.add.reduceat(entries[part], starts) * shape.entry >= rule.own_run
        if np.count_nonzero(long_run):
            chosen = long_run.repeat(sizes)
            part = part[chosen]
            own[part] = True
            stream = tile * (shape.tile_queries * span)  # before those of parts that begin with the tile
            stream[part] = same[chosen]
    full = seen * (covers | own)
    # Pairs that all owners see come first, then the one that they see in part, then those that need a mask.
    masked = full < entries
    rank = stream * 3 + masked * (1 + (full == 0))
    if rank.max() < 1 << 15:
        rank = rank.astype(np.int16)  # which is sorted faster
    by_stream = rank.argsort(kind="stable")
    starts, sizes = _runs(stream[by_stream])
    lo, hi, entries, full = (a[by_stream] for a in (lo, hi, entries, full))
    first = np.minimum.reduceat(lo, starts) // shape.group_queries
    last = (np.maximum.reduceat(hi, starts) + (shape.group_queries - 1)) // shape.group_queries
    query0, groups = first * shape.group_queries, last - first
    owners = lo - query0.repeat(sizes) | hi - lo << 8
    own = own[by_stream[starts]]
    owners_lo = (lo[starts] - query0) * own
    owners_hi = np.where(own, hi[starts] - query0, groups * shape.group_queries)
    of_wide = _Wide(groups, _leading(full, entries, starts), owners_lo, owners_hi)
    return _Streams(by_stream, owners, starts, first, of_wide)


def _leading(full: np.ndarray, entries: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Per stream: entries from its front that every owner sees in full, which ends with the first pair of which they
    see only a part."""
    whole = full == entries
    counts = whole.copy()
    counts[1:] |= whole[:-1]
    counts[starts] = True
    return np.add.reduceat(full * counts, starts)


def _split(
    stream: _Streams, entries: np.ndarray, offset: int, heads: int, shape: TileShape, rule: CostRule, busy: int
) -> np.ndarray:
    """int32 `[items, 8]`: the first fields of the streams' items, cut into whole rounds, long ones first. `entries`: of
    each pair of the streams. `offset`: entries before."""
    count, size = np.add.reduceat(entries, stream.starts), shape.entry
    wide = stream.wide
    keys = shape.narrow_keys if wide is None else shape.wide_keys
    align = max(keys // size, 1)
    number: np.ndarray | int | None = rule.narrow_items if wide is None else rule.wide_items
    if number is None:
        width = size * rule.scale
        most = (
            _narrow_most(np.sort(count).tobytes(), align, width, heads, rule, busy) if wide is None
            else wide_chunk(count, align, width, heads, rule)
        )  # fmt: skip
        number = ceil_div(count, most) if most < count.max() else 1
    of, begin, length = _pieces(count, number, align)
    items = np.zeros((len(of), 8), np.int32)
    items[:, 0] = NARROW if wide is None else WIDE
    items[:, 1] = (count.cumsum() - count)[of] + (begin + offset)
    items[:, 3] = length * size
    items[:, _GROUP0] = stream.group[of]
    items[:, _GROUPS] = 1 if wide is None else wide.groups[of]
    if wide is not None:
        items[:, 2] = np.minimum(np.maximum(wide.full[of] - begin, 0), length) * size // keys * keys
        items[:, 6] = wide.owners_lo[of]
        items[:, 7] = wide.owners_hi[of]
    return items


@lru_cache(maxsize=_KEPT)
def _narrow_most(count: bytes, align: int, size: float, heads: int, rule: CostRule, busy: int) -> int:
    """`narrow_chunk` of the streams of these lengths, int64, shortest first: a fork or two leave most as they were."""
    return narrow_chunk(np.frombuffer(count, np.int64), align, size, heads, rule, busy)


def _pieces(count: np.ndarray, number: np.ndarray | int, align: int) -> tuple[np.ndarray, np.ndarray | int, np.ndarray]:
    """Streams of `count` entries in at most `number` pieces of whole rounds, long ones first. Per piece: its stream,
    its first entry in it, its entries."""
    if isinstance(number, int) and number == 1:  # not cut
        of = (-count).argsort(kind="stable")
        return of, 0, count[of]
    chunk = np.maximum(ceil_div(ceil_div(count, number), align) * align, 1)
    number = ceil_div(count, chunk)
    of = np.arange(len(count)).repeat(number)
    chunk = chunk[of]
    begin = count_from(0, number) * chunk
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


def _record(items: np.ndarray, parts: np.ndarray, deferred: np.ndarray, merge_groups: int) -> tuple[np.ndarray, int]:
    """`Schedule.items` and the number of slots: where each item leaves its part of each of its groups. Per group: its
    number of parts; whether a merge item merges them."""
    count, group0, groups = len(items), items[:, _GROUP0], items[:, _GROUPS]
    of_group = count_from(group0, groups)
    field = of_group + (np.arange(0, count * ITEM_FIELDS, ITEM_FIELDS) - group0).repeat(groups)
    first_slot, merges = _merges(parts.tobytes(), deferred.tobytes(), merge_groups)
    slot = np.empty(len(of_group), np.int64)
    slot[of_group.argsort(kind="stable")] = np.arange(len(of_group))

    records = np.zeros((count + len(merges), ITEM_FIELDS), np.int32)
    records[:count, :8] = items
    records[count:] = merges
    for place, values in ((_SLOT, slot), (_FIRST_SLOT, first_slot[of_group]), (_PARTS, parts[of_group])):
        records.ravel()[place:][field] = values
    return records, len(of_group)


@lru_cache(maxsize=_KEPT)
def _merges(parts: bytes, deferred: bytes, merge_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The first slot of each group, int64, and the merge items, int32 `[M, ITEM_FIELDS]`: those of groups with wide
    parts, which are merged `merge_groups` at once, after all other items. Per group: int64, its number of parts; bool,
    whether a merge item merges them."""
    count, merged = np.frombuffer(parts, np.int64), np.frombuffer(deferred, bool)
    first_slot = count.cumsum() - count
    first = merged.nonzero()[0]
    group = first[:, None]
    if merge_groups > 1:
        first = np.unique(first // merge_groups) * merge_groups
        group = np.minimum(first[:, None] + np.arange(merge_groups), len(count) - 1)
    merges = np.zeros((len(first), ITEM_FIELDS), np.int32)
    merges[:, 0], merges[:, _GROUP0] = MERGE, first
    merges[:, _GROUPS] = np.minimum(len(count) - first, merge_groups)
    merges[:, _FIRST_SLOT : _FIRST_SLOT + merge_groups] = first_slot[group]
    merges[:, _PARTS : _PARTS + merge_groups] = (count * merged)[group]
    return first_slot, merges
