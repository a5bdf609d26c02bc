"""A tree of branches, one query each, to the items of `specialized_kernel`.

Queries are numbered depth first and cut into tiles of 128 rows. Of a tile, keys that all its queries see are shared:
they are read once for all rows and need no mask. The others are masked, in a list for each half of the tile whose
queries see any of them. Both lists are cut into rounds of 64 keys, and a tile into parts until they fill the machine.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from .cost import shared_load
from .plan import TreePlan
from .schedule import Same, Schedule, below, only_longer, pairs_of, spans_of

KEYS = 64
ROWS = 128
ITEM_FIELDS = 96
FIRST, OWN, FIRST_MASKED, TILE, _SLOT0 = 0, 2, 3, 6, 9
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
_KEPT_TILES = 64
_KERNELS_AT_ONCE = 8
"""Each of which may hold up a program a head that waits for one not yet started."""
_EACH = np.zeros(0, np.int64)
"""`Schedule.run_entries` where each entry is a run of its own."""
_IN_ITEMS = np.zeros(0, np.int32)
"""`Schedule.query_token` and `query_pos`: items hold their queries, and marks say what is seen."""


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
    pairs = pairs_of(Same(tree.node_lo), Same(tree.node_hi), None, branches, per_tile)
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
    masking = int(masked.sum())
    if masking > slack * rule.most_masked * sharing:
        return None
    np.subtract(masked * step, held, out=count[5 * pair :])
    items, order_of_rounds, ahead, time = _items(rounds.tobytes(), masked.tobytes(), step, heads, rule)
    if time * rule.gain > slack * rule.time_of_others(sharing, masking, heads):
        return None
    some = count.nonzero()[0]
    by_place = _places(tile.tobytes(), tiles)[some].argsort(kind="stable")
    some = some[by_place]
    of_run = count[some]
    begin = node_start[node]
    own = begin + shared
    later = own + aligned
    begins = np.concatenate([begin, own, own, later, later])
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
    blocks = blocks.astype(np.int32, copy=False)
    return Schedule(items, blocks, mark, run_node, _EACH, _IN_ITEMS, _IN_ITEMS, 2 * tiles, len(items))


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
    return None if mark is None else replace(schedule, entry_mark=mark)


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
    shared = np.frombuffer(shared_rounds, np.int64).tolist()
    lower, upper = np.frombuffer(masked_rounds, np.int64).reshape(2, -1).tolist()
    tiles = list(zip(shared, lower, upper, strict=True))
    kinds = Counter(tiles)
    chunk, time = _chunk(tuple(sorted(kinds.items())), heads, rule)
    lengths = {tile: _length(*tile) for tile in kinds}
    parts = {tile: max(-(-length // chunk), 1) for tile, length in lengths.items()}
    # Whoever comes last merges: those before it have been started. The lower half is merged by the one before it, which
    # of two parts masks that half's keys, and is done with them late; it waits for the last: all programs must have
    # room at once, even beside other such kernels.
    programs = heads * sum(parts[tile] * count for tile, count in kinds.items())
    has_room = programs <= rule.multiprocessors and heads * _KERNELS_AT_ONCE <= rule.multiprocessors
    items = [_items_of(*tile, parts[tile], has_room) for tile in tiles]
    by_length = np.array(sorted(range(len(tiles)), key=lambda i: -lengths[tiles[i]] / parts[tiles[i]]))
    fields, order = (np.concatenate(arrays) for arrays in zip(*(items[i] for i in by_length), strict=True))
    count, size = np.array([(parts[tile], sum(tile)) for tile in tiles]).T
    tile = by_length.repeat(count[by_length])
    of_size = size[by_length]
    order += (size.cumsum() - size)[by_length].repeat(of_size)
    table = np.zeros((len(tile), ITEM_FIELDS), np.int32)
    table[:, : fields.shape[1]] = fields
    begins = table[:, [FIRST, FIRST_MASKED]] + (of_size.cumsum() - of_size).repeat(count[by_length])[:, None]
    begins *= step
    table[:, FIRST], table[:, FIRST_MASKED] = begins.T
    table[:, TILE] = tile
    table[:, _SLOT0] = (count.cumsum() - count)[tile]
    return table, order, begins[:, :, None] + np.arange(2 * step), time


@lru_cache(maxsize=_KEPT_TILES)
def _items_of(shared: int, lower: int, upper: int, parts: int, has_room: bool) -> tuple[np.ndarray, np.ndarray]:
    """The first fields of a tile's items, int64 `[parts, 12]`, without its number and slot; and which of its rounds,
    of which it has so many, they read one after the other. Where they begin is counted in rounds from its first on."""
    both = lower + upper
    spread = _spreads(shared, both, parts)
    # Of each list the rounds from one edge to the other. Masked ones are cut half by half only to be spread.
    edges = [
        (i * shared // parts, i * lower // parts, i * upper // parts)
        if spread
        else (i * shared // parts, min(i * both // parts, lower), max(i * both // parts - lower, 0))
        for i in range(parts + 1)
    ]
    fields: list[tuple[int, ...]] = []
    order: list[int] = []
    for part, ((s0, l0, u0), (s1, l1, u1)) in enumerate(pairwise(edges)):
        rounds, low, high = s1 - s0, l1 - l0, u1 - u0
        own = min(low, high, max(low + high - rounds + 1, 0) // 3) if spread else 0
        first = len(order)
        order += range(s0, s1)
        of_lower, of_upper = (range(at, at + n) for at, n in ((shared + l0, low), (shared + lower + u0, high)))
        for two in zip(of_lower[:own], of_upper[:own], strict=True):
            order += two
        masked = len(order)
        order += [*of_lower[own:], *of_upper[own:]]
        last = parts - 1
        merges = max(last - has_room, 0), last
        fields.append((first, rounds, own, masked, low - own, high - own, 0, part, parts, 0, *merges))
    return np.array(fields), np.array(order, np.int64)


def _length(shared: int, lower: int, upper: int) -> int:
    """Rounds of a tile one after the other. Masked ones beyond what one group of warps does while two do the shared
    ones are done by all three."""
    return max(shared, min(lower + upper, (2 * shared + lower + upper) // 3 + 1))


def _spreads(shared: int, masked: int, parts: int) -> bool:
    return masked - shared >= _WORTH_SPREADING * parts


@lru_cache(maxsize=4)
def _chunk(tiles: tuple[tuple[tuple[int, int, int], int], ...], heads: int, rule: SpecializedRule) -> tuple[int, float]:
    """The most rounds of a part, as all parts finish first; the time that they take. tiles: how many have so many
    rounds of shared keys, of masked ones of the lower half, of the upper."""
    sizes = [(_length(*tile), tile[0], tile[1] + tile[2], count) for tile, count in tiles]
    longest = max(length for length, *_ in sizes)
    total = sum(length * count for length, _, _, count in sizes)
    best, least = longest, math.inf
    for pieces in range(1, min(longest, _MOST_PARTS) + 1):
        chunk = -(-longest // pieces)
        parts = [max(-(-length // chunk), 1) for length, *_ in sizes]
        item, per_round = rule.item, rule.round
        if any(_spreads(shared, masked, k) for (_, shared, masked, _), k in zip(sizes, parts, strict=True)):
            item, per_round = rule.spread_item, rule.spread_round
        programs = sum(k * size[3] for size, k in zip(sizes, parts, strict=True))
        waves = -(-programs * heads // rule.multiprocessors)
        time = max(waves * (item + per_round * total / programs), item + per_round * chunk) + rule.merge * (pieces - 1)
        if time < least:
            best, least = chunk, time
    return best, least
