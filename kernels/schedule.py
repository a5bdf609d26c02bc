"""A tree of branches to the work items of one kernel launch.

Queries are numbered depth first and cut into groups of a few rows; groups are cut into tiles. Blocks that several
groups of a tile share go to wide items, a tile and a list of blocks; all others to lanes, in which groups follow one
another in rounds of a fixed number of keys. A cost rule decides tile by tile which blocks are worth a wide item, and
for the whole whether wide items pay at all; wide items are split, and lanes are cut, to fill the machine. Everything is
numpy over nodes, tiles, groups and blocks; no work grows with tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .plan import TreePlan

LANE, WIDE = 1, 2
ITEM_FIELDS = 32
"""A wide item: its kind, first entry, full keys, keys, first group, groups, owners lo and hi; then for up to eight
groups the slot of its partial result, the group's first slot, its number of parts. A lane: kind, first round, 0,
rounds, first piece, pieces. A piece, what one lane reads for one group, is recorded like a wide item of one group."""
_SLOT, _FIRST_SLOT, _PARTS = 8, 16, 24


@dataclass(frozen=True, slots=True)
class TileShape:
    """What the kernel takes at once."""

    group_queries: int
    """Query tokens of a group."""
    tile_groups: int
    """Groups of a wide tile, at most eight; 0: the kernel has no wide tiles."""
    wide_keys: int
    lane_keys: int
    """Keys of a round."""
    entry: int
    """Tokens of an entry: a divisor of the block size, at most the keys of a round."""


@dataclass(frozen=True, slots=True)
class CostRule:
    """Microseconds of a multiprocessor, for a head of `scale` * 256 bytes, fitted on an H100."""

    multiprocessors: int
    scale: float = 1.0
    lane_key: float = 0.014
    """A key that a lane reads for one group."""
    wide_key: float = 0.018
    """A key of a wide tile that all its owners see."""
    masked_key: float = 0.028
    """A key of a wide tile that needs a mask."""
    item: float = 4.0
    """What a wide item costs whatever it reads."""
    lane: float = 3.0
    """What a lane costs whatever it reads."""
    piece: float = 0.5
    """A partial result of a group: computed, written and read."""
    merge: float = 0.2
    wide_merge: float = 0.85
    """A part of a group, or of a wide tile, that is merged at the end while nothing else is left to run."""
    own_run: int = 128
    """Keys that a part of a tile must share to get a wide item of their own."""
    lanes: float = 1.0
    """Lanes for every program that the machine runs at once."""
    wide_items: int | None = None
    """Split each wide stream into at most so many items; None: as many as finish first."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """T query tokens, E entries (reads of a block, or of a part of one), I items, P pieces, R rounds. All int32."""

    items: np.ndarray
    """`[I, ITEM_FIELDS]`, in launch order."""
    pieces: np.ndarray
    """`[P, ITEM_FIELDS]`."""
    rounds: np.ndarray
    """`[R, 2]`: the round's group; twice its piece, plus 1 in the piece's last round."""
    entry_block: np.ndarray
    entry_base: np.ndarray
    """`[E]`: which entry of the pool; branch position of its first token. A lane's round r has the `lane_keys // entry`
    entries from r * that; wide items' entries follow after the last round's."""
    entry_meta: np.ndarray
    """`[E]`: first owner in the tile | owners << 8 | tokens that hold a key << 16."""
    query_token: np.ndarray
    query_pos: np.ndarray
    """`[T]` depth first: the query's row of q; its branch position."""
    num_groups: int
    num_slots: int
    """Partial results."""


@dataclass(frozen=True, slots=True)
class _Streams:
    """Pairs of (node, tile or group), sorted by stream: the tile or group whose queries read the node's entries."""

    node: np.ndarray
    entries: np.ndarray
    """Of the node that the pair reads."""
    full: np.ndarray
    """Of these, from the front, the entries that every owner sees in full; 0 where a mask is needed."""
    starts: np.ndarray
    """First pair of each stream."""
    group_lo: np.ndarray
    group_hi: np.ndarray
    owners_lo: np.ndarray
    owners_hi: np.ndarray
    """Per stream: its groups; the queries, from its first, for which full entries count."""


def _ceil(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return -(-a // b)


def _within(counts: np.ndarray) -> np.ndarray:
    """0..counts[0]-1, 0..counts[1]-1, ..."""
    stops = np.cumsum(counts)
    return np.arange(stops[-1] if len(stops) else 0) - np.repeat(stops - counts, counts)


def schedule_tree(tree: TreePlan, shape: TileShape, heads: int, rule: CostRule) -> Schedule:
    """Work items for `heads` kv heads: each item is run once a head."""
    size, split = shape.entry, tree.block_size // shape.entry
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

    query_lo, query_hi = query[tree.node_lo], query[tree.node_hi]
    node_start = tree.node_start.astype(np.int64) * split
    spans = np.stack([tree.node_lo, tree.node_hi], axis=1).ravel()
    node_end = np.maximum.reduceat(np.append(lengths, 0), spans)[::2]  # tokens that some owner holds
    node_seen = np.minimum.reduceat(np.append(lengths - asked + 1, 0), spans)[::2]  # tokens that every query sees
    node_entries = np.minimum(tree.node_stop * split, _ceil(node_end, size)) - node_start

    tile_queries = shape.group_queries * max(shape.tile_groups, 1)
    num_groups = -(-total // shape.group_queries)
    first_tile = query_lo // tile_queries
    tiles = (query_hi - 1) // tile_queries + 1 - first_tile
    node = np.repeat(np.arange(len(tiles)), tiles)
    tile = first_tile[node] + _within(tiles)
    entries = node_entries[node]
    if not one_each:  # keys after the last query of the tile are seen by none
        latest = np.maximum.reduceat(query_pos, np.arange(0, total, tile_queries))
        entries = np.clip(latest[tile] // size + 1 - node_start[node], 0, entries)
    lo = np.maximum(query_lo[node], tile * tile_queries)
    hi = np.minimum(query_hi[node], (tile + 1) * tile_queries)
    group_lo, group_hi = lo // shape.group_queries, (hi - 1) // shape.group_queries + 1
    covers = (lo == tile * tile_queries) & (hi == np.minimum((tile + 1) * tile_queries, total))

    wide = _choose_wide(tile, group_hi - group_lo, covers, entries * size, num_groups, heads, shape, rule)
    lanes, pieces, rounds, items = np.zeros((3, 0), np.int64), np.zeros((2, 0), np.int64), None, None
    listed = []
    offset = 0
    if not wide.all():
        narrow = np.flatnonzero(~wide)
        stream = _lane_streams(*(a[narrow] for a in (node, entries, group_lo, group_hi)))
        each = max(shape.lane_keys // size, 1)
        length = _ceil(np.add.reduceat(stream.entries, stream.starts), each)  # rounds of each group
        lanes, pieces, rounds = _cut_lanes(length, stream.group_lo, heads, shape, rule)
        listed.append((stream, (np.cumsum(length) - length) * each))
        offset = int(length.sum()) * each
    if wide.any():
        stream = _wide_streams(
            *(a[wide] for a in (node, tile, lo, hi, group_lo, group_hi, entries, covers)),
            node_seen, node_start, size, shape.group_queries, rule,
        )  # fmt: skip
        count = np.add.reduceat(stream.entries, stream.starts)
        starts = offset + np.cumsum(count) - count
        items = _split(stream, count, starts, size, heads, shape, rule)
        listed.append((stream, starts))
        offset += int(count.sum())

    block, base, meta = (np.zeros(offset, np.int32) for _ in range(3))  # what is left out is owned by nobody
    for stream, starts in listed:
        _list_entries(
            stream, starts, tree.tables, order[tree.node_lo], node_start, node_end, query_lo, query_hi,
            shape.group_queries, size, split, (block, base, meta),
        )  # fmt: skip
    records, piece_records, num_slots = _record(items, lanes, pieces, num_groups, heads, rule)
    return Schedule(
        records, piece_records, np.zeros((0, 2), np.int32) if rounds is None else rounds, block, base, meta,
        query_token.astype(np.int32), query_pos.astype(np.int32), num_groups, num_slots,
    )  # fmt: skip


def _choose_wide(
    tile: np.ndarray, reach: np.ndarray, covers: np.ndarray, keys: np.ndarray, num_groups: int, heads: int,
    shape: TileShape, rule: CostRule,
) -> np.ndarray:  # fmt: skip
    """Which (node, tile) pairs go to wide items. Each tile takes the cheapest of three: none, all, or every pair that
    gains by it. The whole takes none if that finishes first."""
    none = np.zeros(len(tile), bool)
    if shape.tile_groups < 2 or num_groups < 2:
        return none
    work = keys * rule.scale
    narrow_time = reach * work * rule.lane_key
    wide_time = work * np.where(covers | (keys >= rule.own_run), rule.wide_key, rule.masked_key)
    gain = narrow_time - wide_time
    gains = gain > 0
    tiles = int(tile.max()) + 1
    groups = np.minimum(num_groups - np.arange(tiles) * shape.tile_groups, shape.tile_groups)
    mixed = np.bincount(tile, np.maximum(gain, 0), tiles) - rule.item - groups * rule.piece
    every = np.bincount(tile, np.where(gains, gain, narrow_time - work * rule.masked_key), tiles)
    every += groups * rule.piece - rule.item
    all_wide = every > np.maximum(mixed, 0)
    wide = (all_wide | (mixed > 0))[tile] & (all_wide[tile] | gains)
    if not wide.any():
        return none

    programs = 2 * rule.multiprocessors
    per_tile = np.bincount(tile, np.where(wide, wide_time, 0), tiles)
    longest, running = per_tile.max(), int(np.count_nonzero(per_tile))
    pieces = np.arange(1, 33)
    waves = _ceil(pieces * running * heads, rule.multiprocessors)
    chain = (waves * (longest / pieces + rule.item) + (pieces + 1) * rule.wide_merge).min()
    both = (per_tile.sum() + narrow_time[~wide].sum()) * heads / rule.multiprocessors
    alone = narrow_time.sum() * heads / rule.multiprocessors + rule.lane + programs / (heads * num_groups) * rule.merge
    return none if alone < max(chain, both) else wide


def _lane_streams(node: np.ndarray, entries: np.ndarray, group_lo: np.ndarray, group_hi: np.ndarray) -> _Streams:
    """One stream a group."""
    reach = group_hi - group_lo
    pair = np.repeat(np.arange(len(node)), reach)
    group = np.repeat(group_lo, reach) + _within(reach)
    by_group = np.argsort(group, kind="stable")
    group, pair = group[by_group], pair[by_group]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    first = group[starts]
    nothing = np.zeros_like(first)
    return _Streams(node[pair], entries[pair], np.zeros_like(pair), starts, first, first + 1, nothing, nothing)


def _wide_streams(
    node: np.ndarray, tile: np.ndarray, lo: np.ndarray, hi: np.ndarray, group_lo: np.ndarray, group_hi: np.ndarray,
    entries: np.ndarray, covers: np.ndarray, node_seen: np.ndarray, node_start: np.ndarray, size: int,
    group_queries: int, rule: CostRule,
) -> _Streams:  # fmt: skip
    """One stream a tile, and one more for each long run of entries that the same part of the tile shares."""
    span = int(hi.max()) + 1
    _, run, where = np.unique((tile * span + lo) * span + hi, return_index=True, return_inverse=True)
    long_run = np.bincount(where, entries * size) >= rule.own_run
    own = long_run[where] & ~covers
    stream = tile * (len(run) + 1) + np.where(own, where + 1, 0)
    full = np.where(covers | own, np.clip(node_seen[node] // size - node_start[node], 0, entries), 0)
    # Pairs that all owners see come first, then the one that they see in part, then those that need a mask.
    rank = np.where(full == entries, 0, np.where(full > 0, 1, 2))
    by_stream = np.lexsort((rank, stream))
    stream = stream[by_stream]
    starts = np.flatnonzero(np.diff(stream, prepend=-1))
    head = by_stream[starts]
    first, last = np.minimum.reduceat(group_lo[by_stream], starts), np.maximum.reduceat(group_hi[by_stream], starts)
    query0 = first * group_queries
    owners_lo = np.where(own[head], lo[head] - query0, 0)
    owners_hi = np.where(own[head], hi[head] - query0, (last - first) * group_queries)
    return _Streams(node[by_stream], entries[by_stream], full[by_stream], starts, first, last, owners_lo, owners_hi)


def _full_entries(stream: _Streams) -> np.ndarray:
    """Per stream: how many entries from its front every owner sees in full."""
    whole = stream.full == stream.entries
    ends = np.append(stream.starts[1:], len(whole))
    broken = np.append(np.flatnonzero(~whole), len(whole))
    first = np.minimum(broken[np.searchsorted(broken, stream.starts)], ends)  # the first pair that is not whole
    before = np.append(0, np.cumsum(stream.entries))
    return before[first] - before[stream.starts] + np.where(first < ends, np.append(stream.full, 0)[first], 0)


def _split(
    stream: _Streams, count: np.ndarray, starts: np.ndarray, size: int, heads: int, shape: TileShape, rule: CostRule
) -> np.ndarray:
    """int64 `[items, 8]`: the first fields of wide items, the streams cut into whole rounds."""
    align = max(shape.wide_keys // size, 1)
    if rule.wide_items is None:
        longest = int(count.max())
        pieces = np.unique(np.minimum([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32], -(-longest // align)))
        chunks = _ceil(_ceil(np.array(longest), pieces), align) * align
        number = _ceil(count, chunks[:, None]).sum(axis=1)
        work = number * rule.item + count.sum() * size * rule.scale * rule.wide_key
        longest_item = chunks * size * rule.scale * rule.wide_key + rule.item
        finish = _ceil(number * heads, rule.multiprocessors) * work / number + longest_item - work / number
        chunk = _ceil(count, _ceil(count, chunks[int(np.argmin(finish + pieces * rule.wide_merge))]))
    else:
        chunk = _ceil(count, rule.wide_items)
    chunk = np.maximum(_ceil(chunk, align) * align, 1)
    number = _ceil(count, chunk)
    of = np.repeat(np.arange(len(count)), number)
    begin = _within(number) * chunk[of]
    length = np.minimum(count[of] - begin, chunk[of])
    items = np.empty((len(of), 8), np.int64)
    items[:, 0] = WIDE
    items[:, 1] = starts[of] + begin
    items[:, 2] = np.clip(_full_entries(stream)[of] - begin, 0, length) * size // shape.wide_keys * shape.wide_keys
    items[:, 3] = length * size
    items[:, 4] = stream.group_lo[of]
    items[:, 5] = (stream.group_hi - stream.group_lo)[of]
    items[:, 6] = stream.owners_lo[of]
    items[:, 7] = stream.owners_hi[of]
    return items


_MOST_ROUNDS = 100
"""Of a lane: it counts its pieces in one go, a thread each."""


def _cut_lanes(
    length: np.ndarray, group: np.ndarray, heads: int, shape: TileShape, rule: CostRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the groups' rounds, one after the other, into lanes of about equal length, where possible between groups.

    Returns lanes `[3, n]` (first round, first piece, pieces) with a closing column, pieces `[2, P]` (group, lane) and
    `Schedule.rounds`.
    """
    begin = np.cumsum(length) - length
    total = int(length.sum())
    number = int(2 * rule.multiprocessors * rule.lanes) // heads
    # More lanes than this and the merges of their parts take longer than the rounds that they save.
    round_time = shape.lane_keys * rule.scale * rule.lane_key * heads / rule.multiprocessors
    worth = int(max((total * round_time * len(length) / rule.merge) ** 0.5, len(length)))
    number = min(max(min(number, worth), -(-total // _MOST_ROUNDS), 1), total)
    cuts = np.arange(number) * total // number
    nearest = np.minimum(np.searchsorted(begin, cuts), len(begin) - 1)
    for side in (nearest, np.maximum(nearest - 1, 0)):
        cuts = np.where(np.abs(begin[side] - cuts) * 4 * number <= total, begin[side], cuts)
    cuts = np.unique(cuts)
    bounds = np.union1d(begin, cuts)
    piece_length = np.diff(np.append(bounds, total))
    of_group = group[np.searchsorted(begin, bounds, side="right") - 1]
    of_lane = np.searchsorted(cuts, bounds, side="right") - 1
    pieces_of = np.bincount(of_lane, minlength=len(cuts))
    lanes = np.stack([np.append(cuts, total), np.append(0, np.cumsum(pieces_of)), np.append(pieces_of, 0)])
    rounds = np.empty((total, 2), np.int32)
    rounds[:, 0] = np.repeat(of_group, piece_length)
    rounds[:, 1] = np.repeat(np.arange(len(bounds)) * 2, piece_length)
    rounds[np.cumsum(piece_length) - 1, 1] += 1
    return lanes, np.stack([of_group, of_lane]), rounds


def _list_entries(
    stream: _Streams, starts: np.ndarray, tables: np.ndarray, owner: np.ndarray, node_start: np.ndarray,
    node_end: np.ndarray, query_lo: np.ndarray, query_hi: np.ndarray, group_queries: int, size: int, split: int,
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:  # fmt: skip
    """Write each stream's entries from its place in `starts` on. `owner`: per node, a branch that holds its blocks."""
    node, count = stream.node, stream.entries
    pairs = np.diff(np.append(stream.starts, len(node)))
    before = np.cumsum(count) - count
    place = before + np.repeat(starts - before[stream.starts], pairs)
    origin = np.repeat(stream.group_lo, pairs) * group_queries
    width = np.repeat(stream.group_hi - stream.group_lo, pairs) * group_queries
    first = np.maximum(query_lo[node] - origin, 0)
    owners = np.minimum(query_hi[node] - origin, width) - first
    within = _within(count)
    at = np.repeat(place, count) + within
    index = np.repeat(node_start[node], count) + within
    row = np.repeat(owner[node], count)
    base = index * size
    block = tables[row, index] if split == 1 else tables[row, index // split] * split + index % split
    held = np.minimum(np.repeat(node_end[node], count) - base, size)
    out[0][at], out[1][at] = block, base
    out[2][at] = np.repeat(first | owners << 8, count) | held << 16


def _record(
    wide: np.ndarray | None, lanes: np.ndarray, pieces: np.ndarray, num_groups: int, heads: int, rule: CostRule
) -> tuple[np.ndarray, np.ndarray, int]:
    """`Schedule.items`, `Schedule.pieces` and the number of slots: where each part of a group is left."""
    num_wide = 0 if wide is None else len(wide)
    records = np.zeros((num_wide + max(lanes.shape[1] - 1, 0), ITEM_FIELDS), np.int32)
    piece_records = np.zeros((pieces.shape[1], ITEM_FIELDS), np.int32)
    groups = np.zeros(0, np.int64)
    if wide is not None:
        records[:num_wide, :8] = wide
        groups = wide[:, 5]
    item, place = np.repeat(np.arange(num_wide), groups), _within(groups)
    of_group = np.concatenate([records[item, 4] + place, pieces[0]])
    parts = np.bincount(of_group, minlength=num_groups)
    slot = np.empty(len(of_group), np.int64)
    slot[np.argsort(of_group, kind="stable")] = np.arange(len(of_group))
    fields = np.stack([slot, (np.cumsum(parts) - parts)[of_group], parts[of_group]])
    for field, values in zip((_SLOT, _FIRST_SLOT, _PARTS), fields, strict=True):
        records[item, field + place] = values[: len(item)]
        piece_records[:, field] = values[len(item) :]
    piece_records[:, 4], piece_records[:, 5] = pieces[0], 1
    if lanes.shape[1]:
        first, piece, count = lanes
        lane = records[num_wide:]
        lane[:, 0], lane[:, 1], lane[:, 3] = LANE, first[:-1], np.diff(first)
        lane[:, 4], lane[:, 5] = piece[:-1], count[:-1]
    return records[_launch_order(records[:num_wide, 3], records[num_wide:, 3], heads, rule)], piece_records, len(slot)


def _launch_order(wide: np.ndarray, lanes: np.ndarray, heads: int, rule: CostRule) -> np.ndarray:
    """Items in launch order; `wide` and `lanes` say how much each reads. A first wave of wide items takes a place on
    every multiprocessor; after it the two kinds alternate, so that tensor-bound and memory-bound work run side by side
    to the end."""
    by_size = np.argsort(-wide, kind="stable")
    if not len(lanes) or not len(wide):
        return by_size if len(wide) else np.arange(len(lanes))
    wave = max(rule.multiprocessors // heads, 1)
    later = by_size[wave:]
    progress = np.concatenate([np.cumsum(wide[later]) / max(wide[later].sum(), 1), np.cumsum(lanes) / lanes.sum()])
    rest = np.concatenate([later, len(wide) + np.arange(len(lanes))])
    return np.concatenate([by_size[:wave], rest[np.argsort(progress, kind="stable")]])
