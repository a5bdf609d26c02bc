"""Branches to a tree of nodes: which blocks are read by whom.

A node is a maximal run of blocks that exactly the same branches hold. Two branches that hold the same block hold the
same blocks before it (see `allocator`), so how many branches hold a block says which node it is in, and the nodes form
a forest. Pure numpy: no work grows with tokens or the pool, only with the blocks of the branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import numpy as np

from .allocator import PhysicalKVAllocator


@dataclass(frozen=True, slots=True)
class TreePlan:
    """B branches in the caller's order, T query tokens, N nodes in depth-first order (a parent before its children)."""

    branch_ids: tuple[int, ...]
    block_size: int
    q_lens: np.ndarray
    """int32 `[B]`: query tokens of each branch; they are its last tokens."""
    q_start: np.ndarray
    """int32 `[B + 1]`: where each branch's queries begin among the T."""
    lengths: np.ndarray
    """int32 `[B]`: tokens of each branch, the queries included."""
    tables: np.ndarray
    """int32 `[B, most blocks]`: physical blocks, -1 after a branch's last."""
    order: np.ndarray
    """int32 `[B]`: the branches depth first, so that those below a node are neighbours."""
    node_start: np.ndarray
    node_stop: np.ndarray
    """int32 `[N]`: the node's blocks are numbers `node_start` to `node_stop` of every branch below it."""
    node_lo: np.ndarray
    node_hi: np.ndarray
    """int32 `[N]`: the branches below the node are `order[node_lo:node_hi]`."""

    @property
    def num_queries(self) -> int:
        return int(self.q_start[-1])

    def query_positions(self) -> np.ndarray:
        """int64 `[T]`: the position of every query token on its branch."""
        starts = self.lengths.astype(np.int64) - self.q_start[1:]
        positions: np.ndarray = np.arange(self.num_queries) + starts.repeat(self.q_lens)
        return positions


def plan_tree(
    allocator: PhysicalKVAllocator, branch_ids: Sequence[int], q_lens: Sequence[int] | None = None
) -> TreePlan:
    """The tree that these distinct branches form now. `q_lens` (default: 1 each) counts the last tokens that ask.

    Raises ValueError for no branch, a repeated branch, or a query count outside 1..length; UnknownBranch.
    """
    ids = tuple(map(index, branch_ids))
    if not ids:
        raise ValueError("attention needs at least one branch")
    if not allocator.are_distinct(ids):
        raise ValueError("a branch is listed twice")
    tables, counts = allocator.layout(ids)
    lengths = counts.astype(np.int32)
    queries = np.ones(len(ids), np.int32) if q_lens is None else np.asarray(q_lens, np.int32)
    if queries.shape != lengths.shape:
        raise ValueError(f"{len(ids)} branches but {queries.size} query counts")
    bad = (queries < 1) | (queries > lengths)
    if np.count_nonzero(bad):
        i = int(bad.argmax())
        raise ValueError(f"branch {ids[i]} of {lengths[i]} tokens cannot have {queries[i]} query tokens")
    q_start = np.zeros(len(ids) + 1, np.int32)
    np.add.accumulate(queries, out=q_start[1:])
    ends = -(-lengths // allocator.block_size)
    kept = allocator.kept(ids)
    if kept is None:
        order, start, stop, lo, hi = _find_nodes(tables, ends)
        own = (hi - lo == 1).nonzero()[0]
        if len(own) == len(ids):  # every branch ends in a node of its own: no other grows
            allocator.keep(ids, (order, start, stop, lo, hi, own))
    else:
        order, start, stop, lo, hi, own = kept
        stop = stop.copy()
        stop[own] = ends[order]
    return TreePlan(ids, allocator.block_size, queries, q_start, lengths, tables, order, start, stop, lo, hi)


def _find_nodes(
    tables: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """order, node_start, node_stop, node_lo, node_hi. Per row: its number of blocks."""
    # Blocks that all branches hold form one node: of these columns one is enough to plan the rest.
    skip = max(_held_by_all(tables) - 1, 0)
    cells = tables[:, skip:] + 1  # 0: no block
    ends = ends - skip
    holders = np.bincount(cells.ravel())
    holders[0] = 0
    new = _not_above(cells)
    if np.count_nonzero(new) == np.count_nonzero(holders):  # each block's holders are neighbours already
        order = np.arange(len(tables), dtype=np.int32)
    else:
        order = _depth_first(cells, len(holders))
        cells, ends = cells[order], ends[order]
        new = _not_above(cells)
    start, stop, lo, hi = _nodes(holders.take(cells), new, ends)
    if skip:
        np.add(start, skip, out=start, where=start > 0)
        stop += skip
    return order, start, stop, lo, hi


def _held_by_all(tables: np.ndarray) -> int:
    """How many leading blocks all rows hold."""
    first = tables[0]
    common = int(np.count_nonzero((first == tables[-1]) & (first >= 0)))
    differ = tables[:, common - 1] != first[common - 1]
    if common and not np.count_nonzero(differ):  # then they hold all before it too
        return common
    return int(np.count_nonzero((tables[:, :common] == first[:common]).all(axis=0)))


def _not_above(cells: np.ndarray) -> np.ndarray:
    """Cells with a block that the row above does not hold."""
    new: np.ndarray = cells > 0
    new[1:] &= cells[1:] != cells[:-1]
    return new


def _depth_first(cells: np.ndarray, most: int) -> np.ndarray:
    """int32 `[B]`: an order in which branches with a common prefix are neighbours. Depends on who shares what and on
    the given order, never on where blocks lie. `cells` are below `most`."""
    rows = len(cells)
    first = np.empty(most, np.int32)
    # With repeated indices the last assignment stands: the lowest row that holds the block.
    first[cells[::-1]] = np.arange(rows - 1, -1, -1, dtype=np.int32)[:, None]
    first[0] = rows
    leaders = first.take(cells)
    # A row follows the row that first held its deepest block of another's, and leaves it at that depth.
    depth = np.count_nonzero(leaders < np.arange(rows)[:, None], axis=1)
    leader = leaders[np.arange(rows), np.maximum(depth - 1, 0)]
    leader[depth == 0] = -1
    # Leaders come before their followers, which stand behind them, the deepest first, each with its own followers.
    leads = leader.tolist()
    sizes = [1] * rows
    for row in range(rows - 1, -1, -1):
        if leads[row] >= 0:
            sizes[leads[row]] += sizes[row]
    places = [0] * (rows + 1)  # of the next follower; the last place is for rows without a leader, number -1
    order = [0] * rows
    for row in np.lexsort((-depth, leader)).tolist():
        place = places[leads[row]]
        places[leads[row]] = place + sizes[row]
        places[row] = place + 1
        order[place] = row
    return np.array(order, np.int32)


def _nodes(
    holders: np.ndarray, new: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """node_start, node_stop, node_lo, node_hi of rows in depth-first order. Per cell: how many rows hold its block, and
    whether the row above does not. Per row: its number of blocks."""
    width = new.shape[1]
    holders, begins = holders.ravel(), np.empty(new.size, bool)
    np.not_equal(holders[1:], holders[:-1], out=begins[1:])
    begins[::width] = True
    begins &= new.ravel()
    cell = begins.nonzero()[0]
    lo = cell // width
    start = cell - lo * width
    hi = lo + holders[cell]
    stop = ends[lo]
    np.copyto(stop[:-1], start[1:], where=lo[1:] == lo[:-1], casting="same_kind")  # the next node continues this row
    return start.astype(np.int32), stop, lo.astype(np.int32), hi.astype(np.int32)
