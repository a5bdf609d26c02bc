"""A tree of branches to the work items of one kernel launch.

Queries are numbered depth first and cut into groups of a few rows; groups are cut into tiles. A narrow item streams
the blocks of one group; a wide item takes blocks that several groups of one tile share. A cost rule decides tile by
tile which blocks are worth a wide item, and for the whole whether wide items pay at all; long streams are split until
they fill the machine. Everything is numpy over nodes, tiles, groups and blocks; no work grows with tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .cost import CostRule, TileShape, ceil_div, choose_wide, narrow_chunk, wide_chunk
from .plan import TreePlan

NARROW, WIDE, MERGE = 1, 2, 3
ITEM_FIELDS = 32
"""kind, first entry, full keys, keys, first group, groups, owners lo (narrow: 1 if a merge item merges) and hi; then
for up to eight groups: the slot of the item's partial result, the group's first slot, its number of parts (of a merge
item: 0 where there is nothing to merge)."""
_GROUP0, _GROUPS, _DEFERRED, _SLOT, _FIRST_SLOT, _PARTS = 4, 5, 6, 8, 16, 24


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


@dataclass(slots=True)
class _Streams:
    """Pairs of (node, tile or group), sorted by stream: the tile or group whose queries read the node's entries."""

    node: np.ndarray
    entries: np.ndarray
    """Of the node that the pair reads."""
    full: np.ndarray
    """Of these, from the front, the entries that every owner sees in full; 0 where a mask is needed."""
    starts: np.ndarray
    ends: np.ndarray
    """First pair of each stream, and the one after its last."""
    group_lo: np.ndarray
    group_hi: np.ndarray
    owners_lo: np.ndarray
    owners_hi: np.ndarray
    """Per stream: its groups; the queries, from its first, for which full entries count."""


def _count_from(first: np.ndarray | int, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ..., counts[0] numbers in all, first[1], first[1] + 1, ..."""
    stops = counts.cumsum()
    numbers = (first - stops + counts).repeat(counts)
    numbers += np.arange(len(numbers))
    return numbers


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values begin and end."""
    new = np.ones(len(values) + 1, bool)
    np.not_equal(values[1:], values[:-1], out=new[1:-1])
    edges = new.nonzero()[0]
    return edges[:-1], edges[1:]


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
    lengths = tree.lengths[order].astype(np.int64)
    total = tree.num_queries
    one_each = total == len(order)
    if one_each:
        query_token, query_pos = order, lengths - 1
        query_lo, query_hi = tree.node_lo.astype(np.int64), tree.node_hi.astype(np.int64)
        seen_by_first = lengths
    else:
        asked = tree.q_lens[order].astype(np.int64)
        query = np.zeros(len(order) + 1, np.int64)
        np.cumsum(asked, out=query[1:])
        query_token, query_pos = _count_from(tree.q_start[order], asked), _count_from(lengths - asked, asked)
        query_lo, query_hi = query[tree.node_lo], query[tree.node_hi]
        seen_by_first = lengths - asked + 1
    node_start = tree.node_start.astype(np.int64) * split
    node_entries = tree.node_stop * split - node_start

    tile_queries = shape.group_queries * max(shape.tile_groups, 1)
    num_groups = -(-total // shape.group_queries)
    first_tile = query_lo // tile_queries
    tiles = (query_hi - 1) // tile_queries + 1 - first_tile
    node = np.arange(len(tiles)).repeat(tiles)
    tile = _count_from(first_tile, tiles)
    entries = node_entries[node]
    if not one_each:  # keys after the last query of the tile are seen by none
        latest = np.maximum.reduceat(query_pos, np.arange(0, total, tile_queries))
        entries = np.minimum(np.maximum(latest[tile] // size + 1 - node_start[node], 0), entries)
    tile_lo = tile * tile_queries
    tile_hi = np.minimum(tile_lo + tile_queries, total)
    lo, hi = np.maximum(query_lo[node], tile_lo), np.minimum(query_hi[node], tile_hi)
    group_lo, group_hi = lo // shape.group_queries, (hi - 1) // shape.group_queries + 1
    covers = (lo == tile_lo) & (hi == tile_hi)

    wide = choose_wide(tile, group_hi - group_lo, covers, entries * size, num_groups, heads, shape, rule)
    if apart and 4 * int(((group_hi - group_lo) * entries)[~wide].sum()) < int(entries[wide].sum()):
        return None
    spans = _spans(tree)
    streams, kinds = [], []
    chosen = slice(None) if wide.all() else wide.nonzero()[0]
    if wide.any():
        pairs = (a[chosen] for a in (node, tile, lo, hi, group_lo, group_hi, entries, covers))
        seen = _below(np.minimum, seen_by_first, spans)  # tokens that every query below a node sees
        seen = seen // size - node_start
        streams.append(_wide_streams(*pairs, seen=seen, size=size, group_queries=shape.group_queries, rule=rule))
        kinds.append(WIDE)
    if not wide.all():
        others = (~wide).nonzero()[0]
        streams.append(_narrow_streams(*(a[others] for a in (node, entries, group_lo, group_hi))))
        kinds.append(NARROW)

    items: list[np.ndarray] = []
    lists, offset = [], 0
    for kind, stream in zip(kinds, streams, strict=True):
        count = np.add.reduceat(stream.entries, stream.starts)
        busy = 0 if apart else heads * sum(len(item) for item in items)
        items.append(_split(kind, stream, count, offset, size, heads, shape, rule, busy))
        lists.append((stream.node, stream.entries, _owners(stream, query_lo, query_hi, shape.group_queries)))
        offset += int(count.sum())
    pair_node, pair_entries, pair_owners = (np.concatenate(a) for a in zip(*lists, strict=True))
    of_node = pair_node.repeat(pair_entries)
    index = _count_from(node_start[pair_node], pair_entries)
    row_begin = order[tree.node_lo] * tree.tables.shape[1]
    cell = row_begin[of_node] + (index if split == 1 else index // split)
    block = tree.tables.ravel().take(cell)
    if split > 1:
        block = block * split + index % split
    base = index * size
    held = _held(_below(np.maximum, lengths, spans)[of_node], base, size)
    mark = pair_owners.repeat(pair_entries) | held << 16 | base << 32

    records, num_slots = _record(_launch_order(items, heads, rule, apart), num_groups, shape.merge_groups)
    narrowed = (a.astype(np.int32, copy=False) for a in (block, of_node, query_token, query_pos))
    block, of_node, query_token, query_pos = narrowed
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
    held = _held(longest, schedule.entry_mark >> 32, size)
    mark = schedule.entry_mark & ~0xFFFF0000 | held << 16
    return replace(schedule, entry_mark=mark, query_pos=lengths - 1)


def _spans(tree: TreePlan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `_below`. The first branch below each node; the nodes above several branches; and of these the first branch
    and the one after the last, node after node."""
    inner = (tree.node_hi - tree.node_lo > 1).nonzero()[0]
    spans = np.empty(2 * len(inner), np.int64)
    spans[::2], spans[1::2] = tree.node_lo[inner], tree.node_hi[inner]
    return tree.node_lo, inner, spans


def _below(of_two: np.ufunc, of_branch: np.ndarray, spans: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Per node: the least or largest (`of_two`) of the branches below it, which are given depth first."""
    first, inner, edges = spans
    below = of_branch[first]
    if len(inner):
        padded = np.zeros(len(of_branch) + 1, np.int64)
        padded[:-1] = of_branch
        below[inner] = of_two.reduceat(padded, edges)[::2]
    return below


def _held(longest: np.ndarray, base: np.ndarray, size: int) -> np.ndarray:
    """Per entry: tokens of it that the longest branch below its node holds."""
    return np.minimum(np.maximum(longest - base, 0), size)


def _narrow_streams(node: np.ndarray, entries: np.ndarray, group_lo: np.ndarray, group_hi: np.ndarray) -> _Streams:
    """One stream a group."""
    reach = group_hi - group_lo
    pair, group = np.arange(len(node)), group_lo
    if reach.max() > 1:
        pair, group = pair.repeat(reach), _count_from(group_lo, reach)
    by_group = group.argsort(kind="stable")
    group, pair = group[by_group], pair[by_group]
    starts, ends = _runs(group)
    first = group[starts]
    nothing = np.zeros_like(first)
    return _Streams(node[pair], entries[pair], np.zeros_like(pair), starts, ends, first, first + 1, nothing, nothing)


def _wide_streams(
    node: np.ndarray, tile: np.ndarray, lo: np.ndarray, hi: np.ndarray, group_lo: np.ndarray, group_hi: np.ndarray,
    entries: np.ndarray, covers: np.ndarray, *, seen: np.ndarray, size: int, group_queries: int, rule: CostRule,
) -> _Streams:  # fmt: skip
    """One stream a tile, and one more for each long run of entries that the same part of the tile shares. `seen`: per
    node, entries of it that every query below it sees."""
    own, stream = np.zeros(len(tile), bool), tile
    part = (~covers).nonzero()[0]
    if len(part):
        span = int(hi.max()) + 1
        same = (tile[part] * span + lo[part]) * span + hi[part]
        by_part = same.argsort(kind="stable")
        part, same = part[by_part], same[by_part]
        starts, ends = _runs(same)
        long_run = np.add.reduceat(entries[part], starts) * size >= rule.own_run
        chosen = long_run.repeat(ends - starts)
        own[part[chosen]] = True
        stream = tile * span * span
        stream[part[chosen]] = same[chosen]
    full = np.where(covers | own, np.minimum(np.maximum(seen[node], 0), entries), 0)
    # Pairs that all owners see come first, then the one that they see in part, then those that need a mask.
    by_stream = (stream * 3 + (full < entries) * (1 + (full == 0))).argsort(kind="stable")
    stream = stream[by_stream]
    starts, ends = _runs(stream)
    head = by_stream[starts]
    first, last = np.minimum.reduceat(group_lo[by_stream], starts), np.maximum.reduceat(group_hi[by_stream], starts)
    query0 = first * group_queries
    owners_lo = np.where(own[head], lo[head] - query0, 0)
    owners_hi = np.where(own[head], hi[head] - query0, (last - first) * group_queries)
    return _Streams(
        node[by_stream], entries[by_stream], full[by_stream], starts, ends, first, last, owners_lo, owners_hi
    )


def _full_entries(stream: _Streams, count: np.ndarray) -> np.ndarray:
    """Per stream: how many of its `count` entries, from the front, every owner sees in full."""
    whole = stream.full == stream.entries
    if whole.all():
        return count
    ends = stream.ends
    broken = np.concatenate([(~whole).nonzero()[0], [len(whole)]])
    first = np.minimum(broken[np.searchsorted(broken, stream.starts)], ends)  # the first pair that is not whole
    before = np.concatenate([[0], stream.entries.cumsum()])
    part = np.where(first < ends, np.concatenate([stream.full, [0]])[first], 0)
    return before[first] - before[stream.starts] + part


def _owners(stream: _Streams, query_lo: np.ndarray, query_hi: np.ndarray, group_queries: int) -> np.ndarray:
    """Per pair: the first of the stream's queries that owns the node's entries | how many do << 8."""
    pairs = stream.ends - stream.starts
    origin = stream.group_lo.repeat(pairs) * group_queries
    width = (stream.group_hi - stream.group_lo).repeat(pairs) * group_queries
    first = np.maximum(query_lo[stream.node] - origin, 0)
    return first | (np.minimum(query_hi[stream.node] - origin, width) - first) << 8


def _split(
    kind: int, stream: _Streams, count: np.ndarray, offset: int, size: int, heads: int, shape: TileShape,
    rule: CostRule, busy: int,
) -> np.ndarray:  # fmt: skip
    """int64 `[items, 8]`: the first fields of the streams' items, cut into whole rounds. `offset`: entries before."""
    wide = kind == WIDE
    keys = shape.wide_keys if wide else shape.narrow_keys
    align = max(keys // size, 1)
    number: np.ndarray | int | None = rule.wide_items if wide else rule.narrow_items
    if number is None:
        width = size * rule.scale
        most = (
            wide_chunk(count, align, width, heads, rule) if wide
            else narrow_chunk(count, align, width, heads, rule, busy)
        )  # fmt: skip
        number = ceil_div(count, most)
    chunk = np.maximum(ceil_div(ceil_div(count, number), align) * align, 1)
    number = ceil_div(count, chunk)
    if number.max() == 1:
        of, begin, length = np.arange(len(count)), np.zeros_like(count), count
    else:
        of = np.arange(len(count)).repeat(number)
        begin = _count_from(0, number) * chunk[of]
        length = np.minimum(count[of] - begin, chunk[of])
    items = np.zeros((len(of), 8), np.int64)
    items[:, 0] = kind
    items[:, 1] = offset + (count.cumsum() - count)[of] + begin
    if wide:
        items[:, 2] = np.minimum(np.maximum(_full_entries(stream, count)[of] - begin, 0), length) * size // keys * keys
    items[:, 3] = length * size
    items[:, 4] = stream.group_lo[of]
    items[:, 5] = (stream.group_hi - stream.group_lo)[of]
    items[:, 6] = stream.owners_lo[of]
    items[:, 7] = stream.owners_hi[of]
    return items


def _record(items: np.ndarray, num_groups: int, merge_groups: int) -> tuple[np.ndarray, int]:
    """`Schedule.items` and the number of slots: where each item leaves its part of each of its groups. Groups with wide
    parts are merged by items of their own, `merge_groups` at once, after all others."""
    groups = items[:, _GROUPS]
    item, place = np.arange(len(items)).repeat(groups), _count_from(0, groups)
    of_group = items[item, _GROUP0] + place
    parts = np.bincount(of_group, minlength=num_groups)
    first_slot = parts.cumsum() - parts
    by_group = of_group.argsort(kind="stable")

    deferred = np.zeros(num_groups, bool)
    deferred[of_group[items[item, 0] == WIDE]] = True
    deferred &= parts > 1
    first = deferred.nonzero()[0]
    if merge_groups > 1:
        first = np.unique(first // merge_groups) * merge_groups

    records = np.zeros((len(items) + len(first), ITEM_FIELDS), np.int32)
    records[: len(items), :8] = items
    narrow = (items[:, 0] == NARROW).nonzero()[0]
    records[narrow, _DEFERRED] = deferred[items[narrow, _GROUP0]]
    records[item[by_group], _SLOT + place[by_group]] = np.arange(len(item))
    records[item, _FIRST_SLOT + place] = first_slot[of_group]
    records[item, _PARTS + place] = parts[of_group]
    merges = records[len(items) :]
    merges[:, 0], merges[:, _GROUP0] = MERGE, first
    merges[:, _GROUPS] = np.minimum(num_groups - first, merge_groups)
    group = np.minimum(first[:, None] + np.arange(merge_groups), num_groups - 1)
    merges[:, _FIRST_SLOT : _FIRST_SLOT + merge_groups] = first_slot[group]
    merges[:, _PARTS : _PARTS + merge_groups] = np.where(deferred[group], parts[group], 0)
    return records, len(item)


def _launch_order(kinds: list[np.ndarray], heads: int, rule: CostRule, apart: bool) -> np.ndarray:
    """All items, long ones first. A first wave of wide items takes a place on every multiprocessor; after it wide and
    narrow ones alternate so that tensor-bound and memory-bound work run side by side to the end."""
    ranked = [items[(-items[:, 3]).argsort(kind="stable")] for items in kinds]
    if len(ranked) == 1:
        return ranked[0]
    wide, narrow = ranked
    if apart:
        return np.concatenate(ranked)
    wave = max(rule.multiprocessors // heads, 1)
    progress = [items[:, 3].cumsum() / items[:, 3].sum() for items in (wide[wave:], narrow) if len(items)]
    rest = np.concatenate([wide[wave:], narrow])
    return np.concatenate([wide[:wave], rest[np.concatenate(progress).argsort(kind="stable")]])
