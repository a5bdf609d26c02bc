"""A tree of branches, one query each, to the items of `specialized_kernel`.

Queries are numbered depth first and cut into tiles of 128 rows. Of a tile, keys that all its queries see are shared:
they are read once for all rows and need no mask. The others are masked, in a list for each half of the tile whose
queries see any of them. Both lists are cut into rounds of 64 keys, and a tile into parts until they fill the machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .cost import shared_load
from .plan import TreePlan
from .schedule import Same, Schedule, below, count_from, only_longer, pairs_of, spans_of

KEYS = 64
ROWS = 128
ITEM_FIELDS = 96
FIRST, OWN, FIRST_MASKED, TILE, PARTS = 0, 2, 3, 6, 8
_BLOCKS, _QUERIES = 16, 32
"""See `specialized_kernel.FIELDS`."""
_AHEAD = 8
"""Blocks of either ring that an item has room for."""
WHOLE, PLAIN = 1 << 29, 1 << 30
"""In the mark of a round's first entry: all its entries are whole; and they have the same owners. The other fields of a
mark are as in `schedule`."""
_NOWHERE = 1 << 30
"""A position that no branch reaches: of entries that fill a list up to whole rounds."""
_MOST_PARTS = 16
_WORTH_SPREADING = 3
"""Masked rounds more than shared ones, of a part."""
_KERNELS_AT_ONCE = 8
"""Each of which may hold up a program a head that waits for one not yet started."""
_GROUP_ROWS = 16
"""Of no matter here: as `tree_kernel` has them beside tiles of as many rows, so that pairs are found once for both."""
_EACH = np.zeros(0, np.int64)
"""`Schedule.run_entries` where each entry is a run of its own."""


@dataclass(frozen=True, slots=True)
class SpecializedRule:
    """Microseconds, fitted on an H200."""

    multiprocessors: int
    round: float = 1.06
    item: float = 7.5
    """What a part costs whatever it reads."""
    merge: float = 0.65
    """Another part of a tile that is merged."""
    spread_round: float = 1.3
    spread_item: float = 11.0
    """Where all warps take masked rounds: a larger kernel, whose instructions are not all at hand."""
    others: float = 11.0
    others_shared: float = 1.24
    others_masked: float = 0.95
    """What `tree_kernel` takes for such a tree: whatever it reads, and for a round on each multiprocessor."""
    gain: float = 1.1
    """Times as fast that this kernel must be expected to be."""
    least_shared: float = 4.0
    """Rounds that a tile shares at least, on average."""
    most_masked: float = 8.0
    """Rounds of masked keys to one of shared keys, at most."""

    def item_capacity(self, items: int, heads: int) -> int:
        """Room for so many items and some more: up to a program a multiprocessor, idle ones cost nothing."""
        return max(self.multiprocessors // heads, items + items // 4 if items * heads > self.multiprocessors else items)

    def time_of_others(self, shared: int, masked: int, heads: int) -> float:
        """What `tree_kernel` takes for so many rounds of each of `heads` kv heads."""
        work = self.others_shared * shared + self.others_masked * masked
        return self.others + work * heads / self.multiprocessors


def tile_queries(group_pad: int) -> int:
    """Query tokens of a tile, for so many rows a query."""
    return ROWS // group_pad


def entry_size(block_size: int) -> int:
    """Tokens of an entry: the largest part of a block that fills a round with others of its size. Under 16 the kernel
    has no room for the marks of a round."""
    return math.gcd(block_size, KEYS)


def schedule_specialized(
    tree: TreePlan, entry: int, group_pad: int, heads: int, rule: SpecializedRule, *, stays: bool = False
) -> Schedule | None:
    """None where a branch has several queries, where one ends inside an entry that another has more of, where too
    little is shared, by itself or beside what is not, or where `tree_kernel` is expected to be as fast. A tree that
    `stays` with the kernel, as its graphs are captured so, may do half as well."""
    branches = len(tree.order)
    if tree.num_queries != branches:
        return None
    per_tile = tile_queries(group_pad)
    tiles = -(-branches // per_tile)
    slack = 2 if stays else 1
    least = max(rule.least_shared * tiles / slack, 1)
    if not stays and branches >= per_tile and shared_load(tree, 1, per_tile, 1) < least * KEYS / 2:
        return None  # by far too little, soon told
    pairs = pairs_of(Same(tree.node_lo), Same(tree.node_hi), None, branches, per_tile, _GROUP_ROWS // group_pad)
    lengths = tree.lengths[tree.order].astype(np.int64)
    shortest = below(np.minimum, lengths, pairs.spans)
    split = tree.block_size // entry
    node_start = tree.node_start.astype(np.int64) * split
    node_count = tree.node_stop * split - node_start
    seen_by_all = np.minimum(np.maximum(shortest // entry - node_start, 0), node_count)

    # Tile after tile; of each, shared entries up to whole rounds, from the front.
    step = KEYS // entry
    by_tile = pairs.tile.argsort(kind="stable")
    node, tile, lo, hi = pairs.node[by_tile], pairs.tile[by_tile], pairs.lo[by_tile], pairs.hi[by_tile]
    seen = seen_by_all[node]
    full = seen * pairs.covers[by_tile]
    total = np.bincount(tile, full, tiles).astype(np.int64)
    rounds = total // step
    sharing = int(rounds.sum())
    if sharing < least:
        return None
    after = total.cumsum()[tile] - full.cumsum()
    shared = np.minimum(np.maximum(full + after - (total - rounds * step)[tile], 0), full)

    # Runs of entries: of a pair its shared ones; then, in each half that sees it, what is left, whole rounds first;
    # entries of no owner fill each half's list up to whole rounds.
    pair = len(tile)
    aligned = np.maximum(seen - shared, 0) // step * step
    rest = node_count[node] - shared - aligned
    middle = tile * per_tile + per_tile // 2
    count = np.empty(5 * pair + 2 * tiles, np.int64)
    count[:pair] = shared
    for i, sees in enumerate((lo < middle, hi > middle)):
        np.multiply(aligned, sees, out=count[(1 + i) * pair : (2 + i) * pair])
        np.multiply(rest, sees, out=count[(3 + i) * pair : (4 + i) * pair])
    both = np.concatenate([tile, tile + tiles])
    held = np.bincount(np.concatenate([both, both]), count[pair : 5 * pair], 2 * tiles).astype(np.int64)
    masked = -(-held // step)
    if int(masked.sum()) > slack * rule.most_masked * sharing:
        return None
    np.subtract(masked * step, held, out=count[5 * pair :])
    items, order_of_rounds, ahead, time = _items(rounds.tobytes(), masked.tobytes(), step, heads, rule)
    if time * rule.gain > slack * rule.time_of_others(sharing, int(masked.sum()), heads):
        return None
    some = count.nonzero()[0]
    by_place = _places(tile.tobytes(), tiles)[some].argsort(kind="stable")
    some = some[by_place]
    of_run = count[some]
    begin = node_start[node]
    own = begin + shared
    begins = np.concatenate([begin, own, own, own + aligned, own + aligned])
    fillers = (some >= 5 * pair).nonzero()[0]
    some[fillers] = 0
    first = begins[some]
    of = some % pair
    of_node = node[of]
    owners = (lo - tile * per_tile | hi - lo << 8)[of]
    owners[fillers] = 0

    number, run, filler = _layout(of_run.tobytes(), fillers.tobytes(), Same(order_of_rounds), step)
    index = first[run]
    index += number
    run_node = of_node[run]
    index[filler] = 0
    row = (tree.order[tree.node_lo] * tree.tables.shape[1]).astype(np.int64)[of_node][run]
    if split == 1:
        row += index
        blocks = tree.tables.ravel().take(row)
    else:
        blocks = tree.tables.ravel().take(row + index // split) * split + index % split
    index *= entry
    index[filler] = _NOWHERE
    mark = _held(owners[run], index, tree, shortest, below(np.maximum, lengths, pairs.spans), run_node, entry)
    if mark is None:
        return None
    items = items.copy()
    eights = items.reshape(len(items), -1, _AHEAD)
    eights[:, _BLOCKS // _AHEAD : _QUERIES // _AHEAD, : 2 * step] = blocks.take(ahead, mode="clip")
    queries = np.zeros(tiles * per_tile, np.int32)
    np.add(tree.order, 1, out=queries[:branches], casting="unsafe")
    items[:, _QUERIES : _QUERIES + per_tile] = queries.reshape(tiles, per_tile)[items[:, TILE]]
    return Schedule(
        items, blocks.astype(np.int32, copy=False), mark, run_node, _EACH, tree.order.astype(np.int32, copy=False),
        (lengths - 1).astype(np.int32), 2 * tiles, len(items),
    )  # fmt: skip


@lru_cache(maxsize=4)
def _places(tile: bytes, tiles: int) -> np.ndarray:
    """Where in the lists of all tiles a run belongs: of each pair the shared one, those of whole rounds of either half
    and those of the rest; the fillers of each tile's halves. tile: int64, of each pair."""
    of_pair = np.frombuffer(tile, np.int64) * 5
    of_tile = np.arange(0, 5 * tiles, 5)
    return np.concatenate([*(of_pair + i for i in (0, 1, 3, 2, 4)), of_tile + 2, of_tile + 4])


@lru_cache(maxsize=4)
def _layout(counts: bytes, fillers: bytes, order: Same, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all entries, in the order in which rounds of `step` are read: the number in its run, and which run that is;
    and which of them are in the runs `fillers`. counts, fillers: int64."""
    count = np.frombuffer(counts, np.int64)
    stops = count.cumsum()
    number = np.arange(stops[-1]).reshape(-1, step)[order.array].ravel()
    run = np.arange(len(count)).repeat(count)[number]
    fills = np.zeros(len(count), bool)
    fills[np.frombuffer(fillers, np.int64)] = True
    filler = fills[run].nonzero()[0]
    return number - (stops - count)[run], run, filler


def grown_specialized(schedule: Schedule, before: TreePlan, tree: TreePlan, entry: int) -> Schedule | None:
    """As `schedule.grown`."""
    if not only_longer(before, tree):
        return None
    spans = spans_of(tree.node_lo, tree.node_hi, len(tree.order))
    lengths = tree.lengths[tree.order].astype(np.int64)
    shortest, longest = (below(of_two, lengths, spans) for of_two in (np.minimum, np.maximum))
    owners, position = schedule.entry_mark & 0xFFFF, schedule.entry_mark >> 32
    mark = _held(owners, position, tree, shortest, longest, schedule.run_node, entry)
    return None if mark is None else replace(schedule, entry_mark=mark, query_pos=tree.lengths[tree.order] - 1)


def _held(
    owners: np.ndarray, position: np.ndarray, tree: TreePlan, shortest: np.ndarray, longest: np.ndarray,
    node: np.ndarray, entry: int,
) -> np.ndarray | None:  # fmt: skip
    """Marks of entries of these nodes, from these positions on; in the first of each round that is so `WHOLE` and
    `PLAIN`. shortest, longest: lengths of the branches below each node. None where one sees less of it than another."""
    stop = tree.node_stop.astype(np.int64) * tree.block_size
    most = np.minimum(longest, stop)
    if not np.array_equal(most, np.minimum(shortest, stop)):
        return None
    tokens = most[node]
    tokens -= position
    np.minimum(np.maximum(tokens, 0, out=tokens), entry, out=tokens)
    step = KEYS // entry
    whole = (tokens == entry).view(f"u{step}") == int.from_bytes(b"\1" * step, "little")
    plain = whole & (node[::step] == node[step - 1 :: step])  # in a list each node's entries follow one another
    mark: np.ndarray = owners | tokens << 16 | position << 32
    mark[::step] |= whole * WHOLE | plain * PLAIN
    return mark


@lru_cache(maxsize=4)
def _items(
    shared_rounds: bytes, masked_rounds: bytes, step: int, heads: int, rule: SpecializedRule
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """int32 `[items, ITEM_FIELDS]`, the longest first, without blocks and queries; which rounds, of those tile after
    tile, they read one after the other; int64 `[items, 2, blocks]`, the entries that an item tells the blocks of; the
    time that all take. None of it is written to. Rounds of each list, int64: shared `[tiles]`, masked `[2, tiles]`."""
    shared = np.frombuffer(shared_rounds, np.int64)
    masked = np.frombuffer(masked_rounds, np.int64).reshape(2, -1)
    both = masked.sum(axis=0)
    parts, length, time = _parts(shared, both, heads, rule)
    spread = both - shared >= _WORTH_SPREADING * parts
    by_length = (-length / parts).argsort(kind="stable")
    tile = by_length.repeat(parts[by_length])
    part = count_from(0, parts[by_length])
    k = parts[tile]
    # Of each list the rounds from one edge to the other. Masked ones are cut half by half only to be spread.
    edges = np.array([part, part + 1])
    shared_at = shared[tile] * edges // k
    masked_at = both[tile] * edges // k
    lower, upper = masked[:, tile]
    lower_at = np.where(spread[tile], lower * edges // k, np.minimum(masked_at, lower))
    upper_at = np.where(spread[tile], upper * edges // k, np.maximum(masked_at - lower, 0))
    rounds, low, high = (at[1] - at[0] for at in (shared_at, lower_at, upper_at))
    own = np.minimum(np.minimum(low, high), np.maximum(low + high - rounds + 1, 0) // 3) * spread[tile]

    total = rounds + low + high
    begin = total.cumsum() - total
    of_tile = shared + both
    base = (of_tile.cumsum() - of_tile)[tile]
    lower_at, upper_at = lower_at[0] + base + shared[tile], upper_at[0] + base + shared[tile] + lower
    own_at = begin + rounds
    rest_at = own_at + 2 * own
    order = np.empty(int(total.sum()), np.int64)
    # Where the rounds of a list are read, every how many, which they are and how many.
    for at, every, first, count in (
        (begin, 1, shared_at[0] + base, rounds),
        (own_at, 2, lower_at, own),
        (own_at + 1, 2, upper_at, own),
        (rest_at, 1, lower_at + own, low - own),
        (rest_at + low - own, 1, upper_at + own, high - own),
    ):
        order[at.repeat(count) + every * count_from(0, count)] = count_from(first, count)
    # Whoever comes last merges: those before it have been started. The lower half is merged by the one before it, which
    # of two parts masks that half's keys, and is done with them late; it waits for the last: all programs must have
    # room at once, even beside other such kernels.
    last = k - 1
    has_room = max(len(tile), _KERNELS_AT_ONCE) * heads <= rule.multiprocessors
    lower_merges = np.maximum(last - has_room, 0)
    columns = (
        begin * step, rounds, own, rest_at * step, low - own, high - own, tile, part, k,
        (parts.cumsum() - parts)[tile], lower_merges, last,
    )  # fmt: skip
    items = np.zeros((len(tile), ITEM_FIELDS), np.int32)
    for field, column in enumerate(columns):
        items[:, field] = column
    return items, order, items[:, [FIRST, FIRST_MASKED], None] + np.arange(2 * step), time


def _parts(
    shared: np.ndarray, masked: np.ndarray, heads: int, rule: SpecializedRule
) -> tuple[np.ndarray, np.ndarray, float]:
    """Into how many parts each tile is cut, as finishes first; its rounds one after the other; the time that all take.
    Rounds of each tile."""
    # Masked rounds beyond what one group of warps does while two do the shared ones are done by all three.
    length = np.maximum(shared, np.minimum(masked, (2 * shared + masked) // 3 + 1))
    best, least = np.ones_like(length), math.inf
    longest = int(length.max())
    for pieces in range(1, min(longest, _MOST_PARTS) + 1):
        chunk = -(-longest // pieces)
        parts = np.maximum(-(-length // chunk), 1)
        item, per_round = rule.item, rule.round
        if (masked - shared >= _WORTH_SPREADING * parts).any():
            item, per_round = rule.spread_item, rule.spread_round
        programs = int(parts.sum()) * heads
        waves = -(-programs // rule.multiprocessors)
        work = float((item * parts + per_round * length).sum()) * heads / programs
        time = max(waves * work, item + per_round * chunk) + rule.merge * (pieces - 1)
        if time < least:
            best, least = parts, time
    return best, length, least
