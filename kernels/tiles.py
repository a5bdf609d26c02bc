"""A tree plan cut into tiles of equal shape, for backends made of batched matrix products. Pure numpy.

Keys are cut at absolute positions, every `chunk` of them, whoever shares them. So the pieces of a query's softmax, and
the order in which they are summed, depend on the query's own position alone, never on the batch around it. Queries
that read the same physical chunk stand in one tile; which tile, and who stands beside whom, changes no bit of a result
as long as the matrix product computes each row by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .plan import TreePlan

_TILE_SIZES = ((64, 33), (32, 17), (8, 3), (1, 1))
"""Queries a tile may hold, and the fewest that are worth such a tile once the full ones are filled."""


@dataclass(frozen=True, slots=True)
class TileBatch:
    """n tiles of R queries over a chunk of C keys each; m pieces, one for every (query, chunk) in these tiles."""

    queries: np.ndarray
    """int64 `[n, R]`: index in the slab of every query. A place without one repeats the tile's first."""
    slots: np.ndarray
    """int64 `[n, C]`: the keys. After the last key that the tile's queries see, that one is repeated."""
    hidden: np.ndarray
    """bool `[masked, R, C]`: keys that a query must not see, for the first tiles. The others see all."""
    seen: np.ndarray
    """int64 `[n]`: after so many keys of the chunk none is seen. Rises over the masked tiles."""
    query: np.ndarray
    piece: np.ndarray
    """int64 `[m]`: the query's index in the slab, and the number of this piece among the query's, by position."""
    tile: np.ndarray
    place: np.ndarray
    """int64 `[m]`: where the piece is computed."""


@dataclass(frozen=True, slots=True)
class TileSlab:
    """Queries that are computed together."""

    queries: np.ndarray
    """int64 `[t]`: index of each among all T."""
    pieces: int
    """The most pieces that a query has."""
    batches: tuple[TileBatch, ...]


def cut_tiles(tree: TreePlan, chunk: int, window: int | None, slab_pieces: int) -> list[TileSlab]:
    """Cut every query's keys into chunks, and the queries, depth first, into slabs of some `slab_pieces` pieces."""
    counts = tree.q_lens[tree.order].astype(np.int64)
    branch = np.repeat(tree.order.astype(np.int64), counts)
    offset = np.arange(len(branch)) - np.repeat(np.cumsum(counts) - counts, counts)
    query = tree.q_start[branch] + offset
    position = tree.lengths[branch].astype(np.int64) - tree.q_lens[branch] + offset
    first = np.zeros_like(position) if window is None else np.maximum(position - window + 1, 0) // chunk
    pieces = position // chunk + 1 - first
    slab = (np.cumsum(pieces) - 1) // slab_pieces
    edges = [0, *(np.flatnonzero(slab[1:] != slab[:-1]) + 1).tolist(), len(query)]
    slabs = []
    for a, b in pairwise(edges):
        asks = _Asks(tree, chunk, window, branch[a:b], position[a:b], first[a:b], pieces[a:b])
        slabs.append(TileSlab(query[a:b], int(asks.pieces.max()), asks.batches()))
    return slabs


@dataclass(frozen=True, slots=True)
class _Asks:
    """The queries of a slab, `[t]` each: row in the tables, position, first chunk seen, number of chunks seen."""

    tree: TreePlan
    chunk: int
    window: int | None
    branch: np.ndarray
    position: np.ndarray
    first: np.ndarray
    pieces: np.ndarray

    def batches(self) -> tuple[TileBatch, ...]:
        """All pieces, put into tiles."""
        tree, chunk = self.tree, self.chunk
        query = np.repeat(np.arange(len(self.branch)), self.pieces)
        piece = np.arange(len(query)) - np.repeat(np.cumsum(self.pieces) - self.pieces, self.pieces)
        index = self.first[query] + piece
        # The last block of a branch in a chunk names the chunk's content: no other path leads to that block.
        last = np.minimum((index + 1) * chunk, tree.lengths[self.branch[query]]) - 1
        block = tree.tables[self.branch[query], last // tree.block_size].astype(np.int64)
        content = index * (int(block.max()) + 1) + block
        entry = np.argsort(content, kind="stable")
        starts = np.flatnonzero(np.diff(content[entry], prepend=-1))
        askers = np.diff(starts, append=len(entry))
        rank = np.arange(len(entry)) - np.repeat(starts, askers)
        left = np.repeat(askers, askers)
        batches = []
        for size, fewest in _TILE_SIZES:
            rest = left % size
            taken = left - np.where(rest < fewest, rest, 0)
            here = rank < taken
            if here.any():
                chosen, place = entry[here], rank[here] % size
                batches.append(self._batch(size, query[chosen], piece[chosen], index[chosen], place))
            entry, rank, left = entry[~here], (rank - taken)[~here], (left - taken)[~here]
        return tuple(batches)

    def _batch(
        self, size: int, query: np.ndarray, piece: np.ndarray, index: np.ndarray, place: np.ndarray
    ) -> TileBatch:
        """Pieces `[m]` of chunks `index` in tiles of `size` queries; each tile begins at place 0."""
        begins = place == 0
        tile = np.cumsum(begins) - 1
        queries = np.repeat(query[begins][:, None], size, axis=1)
        queries[tile, place] = query
        asks = self.position[queries]
        keys = index[begins][:, None] * self.chunk + np.arange(self.chunk)
        hidden = keys[:, None] > asks[:, :, None]
        if self.window is not None:
            hidden |= keys[:, None] <= asks[:, :, None] - self.window
        masked = hidden.any(axis=(1, 2))
        furthest = queries[np.arange(len(queries)), asks.argmax(axis=1)]
        last = self.position[furthest]
        seen = np.minimum(last + 1 - keys[:, 0], self.chunk)
        order = np.lexsort((seen, ~masked))
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        keys = np.minimum(keys, last[:, None])
        block_size, tables = self.tree.block_size, self.tree.tables
        blocks = tables[self.branch[furthest][:, None], keys // block_size].astype(np.int64)
        slots = blocks * block_size + keys % block_size
        hidden = hidden[order[: np.count_nonzero(masked)]]
        return TileBatch(queries[order], slots[order], hidden, seen[order], query, piece, number[tile], place)
