"""A tree of branches to the work items of one kernel launch.

Queries are numbered depth first and cut into groups of a few rows; groups are cut into tiles. A narrow item streams
the blocks of one group; a wide item takes blocks that several groups of one tile share. The cost rule counts keys: a
narrow item reads a block once for every group, a wide one once for all of them at `CostRule.wide` times the price.
What little of a node falls to a tile joins other streams; long streams are split until they fill the machine.
Everything is numpy over nodes, tiles, groups and blocks; no work grows with tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .plan import TreePlan

NARROW, WIDE = 1, 2
ITEM_FIELDS = 32
"""kind, first entry, full keys, keys, first group, groups, owners lo and hi; then for up to eight groups: the slot of
the item's partial result, the group's first slot, its number of parts."""
MAX_TILE_GROUPS = 8


@dataclass(frozen=True, slots=True)
class TileShape:
    """What the kernel can take at once. `group_queries * group_pad` rows are a group, `tile_groups` groups a tile."""

    group_queries: int
    """Query tokens of a narrow tile."""
    tile_groups: int
    """Groups of a wide tile; 0: the kernel has no wide tiles."""
    wide_keys: int
    narrow_keys: int
    """Keys a round."""


@dataclass(frozen=True, slots=True)
class CostRule:
    """Prices in keys of a narrow round, per kv head; and how many items the machine runs at once."""

    multiprocessors: int
    wide: float = 2.0
    """A key of a wide tile that all its owners see."""
    masked: float = 4.0
    """A key of a wide tile that needs a mask."""
    item: float = 96.0
    """What an item costs whatever it reads."""
    part: float = 24.0
    """A partial result of one group: written and read."""
    merge: float = 10.0
    """A part of a narrow tile, where it is merged while nothing else is left to run; a wide tile takes three times."""
    own_run: int = 128
    """Keys that a part of a tile must share to get a wide item of their own."""
    wide_items: int | None = None
    narrow_items: int | None = None
    """Split each stream into at most so many items; None: as many as fill the machine."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """T query tokens, E entries (block reads), G groups, I items. All int32."""

    items: np.ndarray
    """`[I, ITEM_FIELDS]`, in launch order."""
    entry_block: np.ndarray
    entry_base: np.ndarray
    """`[E]`: physical block; branch position of its first token."""
    entry_meta: np.ndarray
    """`[E]`: first owner in the tile | owners << 8 | tokens that hold a key << 16."""
    query_token: np.ndarray
    query_pos: np.ndarray
    """`[T]` depth first: the query's row of q; its branch position."""

    num_groups: int
    num_slots: int
    """Partial results."""


def _ceil(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return -(-a // b)


def _within(counts: np.ndarray) -> np.ndarray:
    """0..counts[0]-1, 0..counts[1]-1, ..."""
    stops = np.cumsum(counts)
    return np.arange(stops[-1] if len(stops) else 0) - np.repeat(stops - counts, counts)


@dataclass(frozen=True, slots=True)
class _Streams:
    """Pairs of (node, tile or group) of one kind, sorted by stream."""

    node: np.ndarray
    blocks: np.ndarray  # of the node that the pair reads
    full: np.ndarray  # of these, from the front, the blocks that every owner sees in full; 0 where a mask is needed
    starts: np.ndarray  # first pair of each stream
    group_lo: np.ndarray
    group_hi: np.ndarray  # per stream
    owners_lo: np.ndarray
    owners_hi: np.ndarray  # per stream: queries for which the full blocks count


def schedule_tree(tree: TreePlan, shape: TileShape, heads: int, rule: CostRule) -> Schedule:
    """Work items for `heads` kv heads: each item is run once a head."""
    size = tree.block_size
    order = tree.order
    lengths = tree.lengths[order].astype(np.int64)
    asked = tree.q_lens[order].astype(np.int64)
    query = np.zeros(len(order) + 1, np.int64)
    np.cumsum(asked, out=query[1:])
    total = int(query[-1])
    one_each = total == len(order)
    if one_each:
        query_token, query_pos = tree.q_start[order], lengths - 1
    else:
        query_token = np.repeat(tree.q_start[order], asked) + _within(asked)
        query_pos = np.repeat(lengths - asked, asked) + _within(asked)

    node_query_lo, node_query_hi = query[tree.node_lo], query[tree.node_hi]
    node_start, node_stop = tree.node_start.astype(np.int64), tree.node_stop.astype(np.int64)
    spans = np.stack([tree.node_lo, tree.node_hi], axis=1).ravel()
    node_end = np.maximum.reduceat(np.append(lengths, 0), spans)[::2]  # longest owner
    node_seen = np.minimum.reduceat(np.append(lengths - asked + 1, 0), spans)[::2]  # tokens that every query sees

    tile_queries = shape.group_queries * max(shape.tile_groups, 1)
    num_groups = -(-total // shape.group_queries)
    tile_lo, tile_hi = node_query_lo // tile_queries, (node_query_hi - 1) // tile_queries + 1
    fan = tile_hi - tile_lo
    node = np.repeat(np.arange(len(fan)), fan)
    tile = tile_lo[node] + _within(fan)
    blocks = (node_stop - node_start)[node]
    if not one_each:  # keys after the last query of the tile are seen by none
        latest = np.maximum.reduceat(query_pos, np.arange(0, total, tile_queries))
        blocks = np.clip(latest[tile] // size + 1 - node_start[node], 0, blocks)
    lo = np.maximum(node_query_lo[node], tile * tile_queries)
    hi = np.minimum(node_query_hi[node], (tile + 1) * tile_queries)
    group_lo, group_hi = lo // shape.group_queries, (hi - 1) // shape.group_queries + 1

    wide, covers = _choose_wide(tile, lo, hi, group_hi - group_lo, blocks * size, tile_queries, total, shape, rule)
    streams = []
    if wide.any():
        streams.append(
            _wide_streams(
                *(a[wide] for a in (node, tile, lo, hi, group_lo, group_hi, blocks, covers)),
                node_seen, node_start, size, shape.group_queries, rule,
            )
        )  # fmt: skip
    narrow = ~wide
    if narrow.any():
        reach = (group_hi - group_lo)[narrow]
        pair = np.repeat(np.flatnonzero(narrow), reach)
        group = np.repeat(group_lo[narrow], reach) + _within(reach)
        by_group = np.argsort(group, kind="stable")
        group, pair = group[by_group], pair[by_group]
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        first = group[starts]
        nothing = np.zeros_like(first)
        streams.append(
            _Streams(node[pair], blocks[pair], np.zeros_like(pair), starts, first, first + 1, nothing, nothing)
        )
    kinds = [WIDE] * bool(wide.any()) + [NARROW] * bool(narrow.any())

    entries, items = [], []
    offset = 0
    for kind, stream in zip(kinds, streams, strict=True):
        count = np.add.reduceat(stream.blocks, stream.starts)
        full = _full_blocks(stream)
        per_stream = np.diff(np.append(stream.starts, len(stream.node)))
        origin = np.repeat(stream.group_lo * shape.group_queries, per_stream)
        first_owner = np.maximum(node_query_lo[stream.node] - origin, 0)
        limit = np.repeat(stream.group_hi - stream.group_lo, per_stream) * shape.group_queries
        owners = np.minimum(node_query_hi[stream.node] - origin, limit) - first_owner
        entries.append((stream.node, stream.blocks, first_owner | owners << 8))
        keys = shape.wide_keys if kind == WIDE else shape.narrow_keys
        items.append(_split(kind, stream, count, full, offset, keys, size, heads, rule))
        offset += int(count.sum())

    pair_node, pair_blocks, pair_meta = (np.concatenate(a) for a in zip(*entries, strict=True))
    pair = np.repeat(np.arange(len(pair_node)), pair_blocks)
    index = node_start[pair_node][pair] + _within(pair_blocks)
    entry_block = tree.tables[order[tree.node_lo[pair_node]][pair], index]
    entry_base = index * size
    entry_meta = pair_meta[pair] | np.minimum(node_end[pair_node][pair] - entry_base, size) << 16

    ordered = _launch_order(items, heads, rule)
    groups = ordered[:, 5]
    item, place = np.repeat(np.arange(len(ordered)), groups), _within(groups)
    of_group = ordered[item, 4] + place
    parts = np.bincount(of_group, minlength=num_groups)
    by_group = np.argsort(of_group, kind="stable")
    ordered[item[by_group], 8 + place[by_group]] = np.arange(len(item))
    ordered[item, 16 + place] = (np.cumsum(parts) - parts)[of_group]
    ordered[item, 24 + place] = parts[of_group]
    return Schedule(
        *(a.astype(np.int32) for a in (ordered, entry_block, entry_base, entry_meta, query_token, query_pos)),
        num_groups, len(item),
    )  # fmt: skip


def _choose_wide(
    tile: np.ndarray, lo: np.ndarray, hi: np.ndarray, reach: np.ndarray, keys: np.ndarray,
    tile_queries: int, total: int, shape: TileShape, rule: CostRule,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Which (node, tile) pairs go to wide items, and which cover their whole tile. Per tile the cheapest of three:
    all narrow, all wide, or wide where a pair alone gains by it."""
    covers = (lo == tile * tile_queries) & (hi == np.minimum((tile + 1) * tile_queries, total))
    if shape.tile_groups < 2:
        return np.zeros(len(tile), bool), covers
    price = np.where(covers | (keys >= rule.own_run), rule.wide, rule.masked)
    gain = (reach - price) * keys
    tiles = int(tile.max()) + 1
    groups = np.minimum(-(-total // shape.group_queries) - np.arange(tiles) * shape.tile_groups, shape.tile_groups)
    gains = gain > 0
    mixed = np.bincount(tile, np.maximum(gain, 0), tiles) - rule.item - groups * rule.part
    every = np.bincount(tile, np.where(gains, gain, (reach - rule.masked) * keys), tiles) + (groups - 1) * rule.item
    all_wide = every > np.maximum(mixed, 0)
    some_wide = ~all_wide & (mixed > 0)
    return all_wide[tile] | (some_wide[tile] & gains), covers


def _wide_streams(
    node: np.ndarray, tile: np.ndarray, lo: np.ndarray, hi: np.ndarray, group_lo: np.ndarray, group_hi: np.ndarray,
    blocks: np.ndarray, covers: np.ndarray, node_seen: np.ndarray, node_start: np.ndarray, size: int,
    group_queries: int, rule: CostRule,
) -> _Streams:  # fmt: skip
    """One stream a tile, and one more for each long run of blocks that the same part of the tile shares."""
    span = int(hi.max()) + 1
    _, run, where = np.unique((tile * span + lo) * span + hi, return_index=True, return_inverse=True)
    long_run = np.bincount(where, blocks * size) >= rule.own_run
    own = long_run[where] & ~covers
    stream = tile * (len(run) + 1) + np.where(own, where + 1, 0)
    full = np.where(covers | own, np.clip(node_seen[node] // size - node_start[node], 0, blocks), 0)
    # Pairs that all owners see come first, then the one that they see in part, then those that need a mask.
    rank = np.where(full == blocks, 0, np.where(full > 0, 1, 2))
    by_stream = np.lexsort((rank, stream))
    stream = stream[by_stream]
    starts = np.flatnonzero(np.diff(stream, prepend=-1))
    head = by_stream[starts]
    first, last = np.minimum.reduceat(group_lo[by_stream], starts), np.maximum.reduceat(group_hi[by_stream], starts)
    query0 = first * group_queries
    owners_lo = np.where(own[head], lo[head] - query0, 0)
    owners_hi = np.where(own[head], hi[head] - query0, (last - first) * group_queries)
    return _Streams(node[by_stream], blocks[by_stream], full[by_stream], starts, first, last, owners_lo, owners_hi)


def _full_blocks(stream: _Streams) -> np.ndarray:
    """Per stream: how many blocks from its front every owner sees in full."""
    whole = stream.full == stream.blocks
    ends = np.append(stream.starts[1:], len(whole))
    # The first pair of each stream that is not whole (a sentinel at the end of the stream if all are).
    broken = np.append(np.flatnonzero(~whole), len(whole))
    first = np.minimum(broken[np.searchsorted(broken, stream.starts)], ends)
    before = np.append(0, np.cumsum(stream.blocks))
    return before[first] - before[stream.starts] + np.where(first < ends, np.append(stream.full, 0)[first], 0)


def _split(
    kind: int, stream: _Streams, count: np.ndarray, full: np.ndarray, offset: int, keys: int, size: int,
    heads: int, rule: CostRule,
) -> np.ndarray:  # fmt: skip
    """int64 `[items, ITEM_FIELDS]`: the streams cut into items of whole rounds. `offset`: entries before the first."""
    round_blocks = max(keys // size, 1)
    most = rule.wide_items if kind == WIDE else rule.narrow_items
    if most is None:
        price = (rule.wide if kind == WIDE else 1.0) * size
        parts = stream.group_hi - stream.group_lo
        slots = rule.multiprocessors * (1 if kind == WIDE else 2)
        merge = rule.merge * (3 if kind == WIDE else 1)
        chunk = _chunk(count, parts, round_blocks, price, slots, heads, merge, rule)
    else:
        chunk = _ceil(count, most)
    chunk = np.maximum(_ceil(chunk, round_blocks) * round_blocks, 1)
    pieces = _ceil(count, chunk)
    of = np.repeat(np.arange(len(count)), pieces)
    begin = _within(pieces) * chunk[of]
    length = np.minimum(count[of] - begin, chunk[of])
    items = np.zeros((len(of), ITEM_FIELDS), np.int64)
    items[:, 0] = kind
    items[:, 1] = offset + (np.cumsum(count) - count)[of] + begin
    items[:, 2] = np.clip(full[of] - begin, 0, length) * size // keys * keys
    items[:, 3] = length * size
    items[:, 4] = stream.group_lo[of]
    items[:, 5] = (stream.group_hi - stream.group_lo)[of]
    items[:, 6] = stream.owners_lo[of]
    items[:, 7] = stream.owners_hi[of]
    return items


def _chunk(
    count: np.ndarray, groups: np.ndarray, round_blocks: int, price: float, slots: int, heads: int, merge: float,
    rule: CostRule,
) -> np.ndarray:  # fmt: skip
    """Blocks an item of each stream: of a few candidates the one that `slots` programs at once finish first."""
    longest = int(count.max())
    pieces = np.unique(np.minimum([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128], -(-longest // round_blocks)))
    chunks = _ceil(_ceil(np.array(longest), pieces), round_blocks) * round_blocks
    items = _ceil(count, chunks[:, None])  # [candidates, streams]
    number = items.sum(axis=1)
    merged = (np.where(items > 1, items, 0) * groups).sum(axis=1) * rule.part
    work = count.sum() * price + number * rule.item + merged
    longest_item = chunks * price + rule.item
    waves = _ceil(number * heads, slots)
    finish = np.maximum(waves * work / number, work * heads / slots) + np.maximum(longest_item - work / number, 0)
    finish += pieces * merge
    best = chunks[int(np.argmin(finish))]
    return _ceil(count, np.maximum(_ceil(count, best), 1))


def _launch_order(kinds: list[np.ndarray], heads: int, rule: CostRule) -> np.ndarray:
    """All items, long ones first. A first wave of wide items takes one slot of every multiprocessor; after it, wide
    and narrow ones alternate so that tensor-bound and memory-bound work run side by side to the end."""
    ranked = [items[np.argsort(-items[:, 3], kind="stable")] for items in kinds]
    if len(ranked) == 1:
        return ranked[0]
    wide, narrow = ranked
    wave = max(rule.multiprocessors // heads, 1)
    progress = [np.cumsum(items[:, 3]) / items[:, 3].sum() for items in (wide[wave:], narrow) if len(items)]
    rest = np.concatenate([wide[wave:], narrow])
    return np.concatenate([wide[:wave], rest[np.argsort(np.concatenate(progress), kind="stable")]])
