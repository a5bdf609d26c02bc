"""What work items cost, and so which blocks get wide items and how long streams are split.

The constants are microseconds fitted on an H100 and an H200; elsewhere only their ratios matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .plan import TreePlan


@dataclass(frozen=True, slots=True)
class TileShape:
    """What the kernel takes at once."""

    group_queries: int
    """Query tokens of a group, the rows of a narrow tile."""
    tile_groups: int
    """Groups of a wide tile, at most eight; 0: the kernel has no wide tiles."""
    wide_keys: int
    narrow_keys: int
    """Keys of a round."""
    entry: int
    """Tokens of an entry: a divisor of the block size, at most the keys of a round."""
    merge_groups: int = 1
    """Groups that are merged at once, at most eight."""

    @property
    def tile_queries(self) -> int:
        """Query tokens of a tile; of a group where there are no wide tiles."""
        return self.group_queries * max(self.tile_groups, 1)


@dataclass(frozen=True, slots=True)
class CostRule:
    """Microseconds of a multiprocessor, for a head of `scale` * 256 bytes, fitted on Hopper."""

    multiprocessors: int
    scale: float = 1.0
    narrow_key: float = 0.014
    """A key that a narrow item reads for one group."""
    wide_key: float = 0.014
    """A key of a wide tile that all its owners see."""
    masked_key: float = 0.04
    """A key of a wide tile that needs a mask."""
    item: float = 3.0
    """What an item costs whatever it reads."""
    piece: float = 0.3
    """A partial result of a group: written and read."""
    merge: float = 0.2
    wide_merge: float = 0.3
    """A part of a group, or of a wide tile, that is merged at the end while nothing else is left to run."""
    own_run: int = 128
    """Keys that a part of a tile must share to get a wide item of their own."""
    crowd: int = 1
    """Programs with wide items that one of `multiprocessors` takes before another wave of them begins."""
    crowding: float = 1.0
    """How much longer two programs with narrow items take than one that has a multiprocessor to itself: 1 for twice as
    long, 0 for no longer, as where each waits for what it reads."""
    wide_items: int | None = None
    narrow_items: int | None = None
    """Split each stream into at most so many items; None: as many as finish first."""


def fitted_rule(group: int, multiprocessors: int, scale: float = 1.0, pairs: int = 1) -> CostRule:
    """What did best over the benchmark's trees with `group` query heads to a kv head, and as trees that none of it was
    fitted on showed no less: measured for 1, 4 and 16.

    `pairs`: how many times two programs fit a multiprocessor, each time counted as one.
    """
    units = multiprocessors * pairs
    if group == 1:
        return CostRule(
            units, scale, narrow_key=0.01, wide_key=0.011, masked_key=0.019, item=5.5, merge=0.14, wide_merge=0.5,
            own_run=192,
        )  # fmt: skip
    if group >= 8:
        return CostRule(
            units, scale, wide_key=0.017, masked_key=0.06, item=2.7, piece=0.28, merge=0.17, wide_merge=0.085,
            own_run=64, crowd=2,
        )  # fmt: skip
    if pairs == 1:
        return CostRule(units, scale)
    return CostRule(units, scale, narrow_key=0.0135, wide_key=0.011, merge=0.15, wide_merge=0.3, own_run=256)


def fitted_rule_apart(group: int, multiprocessors: int, scale: float = 1.0) -> CostRule:
    """The same where wide items have a launch of their own. Beside it narrow items take as long by themselves as in
    pairs: 64 branches of 2048 + 64 tokens are done in 17.9 instead of 20.1 us on an H200 if each is cut in two."""
    return replace(fitted_rule(group, multiprocessors, scale), crowding=0.0)


def ceil_div(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    return -(-a // b)


def choose_wide(
    tile: np.ndarray, reach: np.ndarray, covers: np.ndarray, keys: np.ndarray, num_groups: int, heads: int,
    shape: TileShape, rule: CostRule,
) -> np.ndarray:  # fmt: skip
    """Which (node, tile) pairs go to wide items. Each tile takes the cheapest of three: none, all, or every pair that
    gains by it. The whole takes none if that finishes first."""
    if shape.tile_groups < 2 or num_groups < 2:
        return np.zeros(len(tile), bool)
    work = keys * rule.scale
    narrow_time = reach * work * rule.narrow_key
    masked_time = work * rule.masked_key
    wide_time = np.where(covers | (keys >= rule.own_run), work * rule.wide_key, masked_time)
    gain = narrow_time - wide_time
    gains = gain > 0
    tiles = -(-num_groups // shape.tile_groups)
    parts, others = _of_tiles(num_groups, shape.tile_groups, rule.piece, rule.item)
    mixed = np.bincount(tile, gain * gains, tiles) - rule.item - parts
    every = np.bincount(tile, np.where(gains, gain, narrow_time - masked_time), tiles) + others
    mixed_gains = mixed > 0
    all_wide = every > mixed * mixed_gains
    wide = (all_wide | mixed_gains)[tile] & (all_wide[tile] | gains)
    if not np.count_nonzero(wide):
        return wide

    # Both ways end to end: all the work shared out, or if that takes longer, the longest chain of one tile's parts.
    units = rule.multiprocessors
    per_tile = np.bincount(tile, wide_time * wide, tiles)
    longest, streams = float(per_tile.max()), int(np.count_nonzero(per_tile)) * heads
    left = float(narrow_time[~wide].sum())
    items = num_groups * heads / (2 * units)
    together = (float(per_tile.sum()) + left) * heads / units + (left > 0) * items * rule.item
    alone = float(narrow_time.sum()) * heads / units + max(items, 1) * rule.item + rule.merge / min(items, 1)
    if alone < together:
        return np.zeros_like(wide)
    for pieces in _CHAIN_PIECES:
        waves, slower = _waves(pieces * streams, rule)
        chain = waves * slower * longest / pieces + (pieces + (left > 0)) * rule.wide_merge + 2 * rule.item
        if chain <= alone:
            return wide
    return np.zeros_like(wide)


@lru_cache(maxsize=16)
def _of_tiles(num_groups: int, tile_groups: int, piece: float, item: float) -> tuple[np.ndarray, np.ndarray]:
    """Per tile, never written to: what a part for each of its groups costs, and an item for each but one."""
    groups = np.minimum(num_groups - np.arange(0, num_groups, tile_groups), tile_groups)
    return groups * piece, (groups - 1) * item


def shared_load(tree: TreePlan, heads: int, tile_queries: int, multiprocessors: int) -> float:
    """Keys that a multiprocessor reads if nodes that fill more than half a tile of queries are read tile by tile."""
    lo, hi = tree.node_lo, tree.node_hi
    if tree.num_queries > len(tree.order):
        before = np.zeros(len(tree.order) + 1, np.int64)
        tree.q_lens[tree.order].cumsum(out=before[1:])
        lo, hi = before[lo], before[hi]
    asked = hi - lo
    shared = (asked > tile_queries // 2).nonzero()[0]
    tiles = (asked[shared] + (tile_queries // 2 - 1)) // tile_queries
    blocks = (tree.node_stop[shared] - tree.node_start[shared]).astype(np.int64)
    return int((blocks * tiles).sum()) * tree.block_size * heads / multiprocessors


_PIECES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96)
_CHAIN_PIECES = tuple(reversed(_PIECES[: _PIECES.index(32) + 1]))
"""Many first: where wide items pay, few pieces take longer than none."""


def _candidates(count: np.ndarray, align: int) -> Iterator[tuple[int, int, int]]:
    """Into how many pieces the longest stream is cut, entries a piece, items of all streams: from one piece on."""
    longest = int(count.max())
    rounds = -(-longest // align)
    yield 1, rounds * align, int(np.count_nonzero(count))
    most = min(rounds, _PIECES[-1])
    pieces = [n for n in _PIECES[1:] if n < most] + [most]
    chunks = [-(-rounds // n) * align for n in pieces]
    if int(count.min()) == longest:
        items = [len(count) * -(-longest // chunk) for chunk in chunks]
    else:
        items = ceil_div(count, np.array(chunks)[:, None]).sum(axis=1).tolist()
    yield from zip(pieces, chunks, items, strict=True)


def _waves(programs: float, rule: CostRule) -> tuple[int, float]:
    """How many waves of so many equal programs with wide items follow each other, and how much longer a program takes
    than with one of `rule.multiprocessors` to itself."""
    share = programs / rule.multiprocessors
    return math.ceil(share / rule.crowd), 0.4 + 0.6 * min(max(share, 1 / rule.crowd), rule.crowd)


def wide_chunk(count: np.ndarray, align: int, size: float, heads: int, rule: CostRule) -> int:
    """Entries an item of wide streams takes at most: what finishes first."""
    key = size * rule.wide_key
    total = int(count.sum()) * heads
    best, least = 0, math.inf
    for pieces, chunk, items in _candidates(count, align):
        waves, slower = _waves(total / chunk, rule)
        together = (items * heads * rule.item + total * key * slower) / (rule.crowd * rule.multiprocessors)
        chain = waves * (rule.item + chunk * key * slower)
        merged = rule.item + pieces * rule.wide_merge if pieces > 1 else 0.0
        time = max(chain, together) + merged
        if time < least:
            best, least = chunk, time
        if together >= chain:  # all of the machine is busy: more pieces only add to its work
            break
    return best


def narrow_chunk(count: np.ndarray, align: int, size: float, heads: int, rule: CostRule, busy: int = 0) -> int:
    """Entries an item of narrow streams takes at most: what finishes first with two programs to a multiprocessor, of
    which `busy` others take their share."""
    key = size * rule.narrow_key
    work = int(count.sum()) * key
    units = rule.multiprocessors
    best, least = 0, math.inf
    for pieces, chunk, items in _candidates(count, align):
        programs = items * heads + busy
        crowd = 1 + rule.crowding * (min(max(programs / units, 1), 2) - 1)
        together = (work + items * rule.item) * heads / (units * (2 - rule.crowding))
        chain = -(-programs // (2 * units)) * (chunk * key * crowd + rule.item)
        time = max(together, chain) + pieces * rule.merge
        if time < least:
            best, least = chunk, time
        if together >= chain:  # all of the machine is busy: more pieces only add to its work
            break
    return best
