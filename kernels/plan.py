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
    ids = tuple(branch_ids)
    if type(sum(ids)) is not int:  # which it is of ints alone; they need no conversion
        ids = tuple(map(index, ids))
    if not ids:
        raise ValueError("attention needs at least one branch")
    if not allocator.are_distinct(ids):
        raise ValueError("a branch is listed twice")
    tables, lengths, ends = (a.astype(np.int32, copy=False) for a in allocator.layout(ids))
    if q_lens is None:
        q_start = np.arange(len(ids) + 1, dtype=np.int32)
        queries = q_start[1:] - q_start[:-1]
        bad = lengths < 1
    else:
        queries = np.asarray(q_lens, np.int32)
        if queries.shape != lengths.shape:
            raise ValueError(f"{len(ids)} branches but {queries.size} query counts")
        q_start = np.zeros(len(ids) + 1, np.int32)
        np.add.accumulate(queries, out=q_start[1:])
        bad = (queries < 1) | (queries > lengths)
    if np.count_nonzero(bad):
        i = int(bad.argmax())
        raise ValueError(f"branch {ids[i]} of {lengths[i]} tokens cannot have {queries[i]} query tokens")
    kept = allocator.kept(ids)
    if kept is None:
        order, start, stop, lo, hi = _find_nodes(tables, ends)
        sole = hi - lo == 1
        if np.count_nonzero(sole) == len(ids):  # every branch ends in a node of its own: no other grows
            allocator.keep(ids, (order, start, stop, lo, hi, sole.nonzero()[0]))
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
    skip = max(_held_by_all(tables, ends) - 1, 0)
    cells = tables[:, skip:] + 1  # 0: no block
    holders = np.bincount(cells.ravel())
    holders[0] = 0
    new = _not_above(cells)
    if len(new) == np.count_nonzero(holders):  # each block's holders are neighbours already
        order = np.arange(len(tables), dtype=np.int32)
    else:
        order = _depth_first(cells, len(holders))
        cells, ends = cells[order], ends[order]
        new = _not_above(cells)
    start, stop, lo, hi = _nodes(cells, new, holders, ends, skip)
    return order, start, stop, lo, hi


def _held_by_all(tables: np.ndarray, ends: np.ndarray) -> int:
    """How many leading blocks all rows hold. Per row: its number of blocks."""
    first = tables[0, : ends[0]]
    common = int(np.count_nonzero(first == tables[-1, : ends[0]]))
    differ = tables[:, common - 1] != first[common - 1]
    if common and not np.count_nonzero(differ):  # then they hold all before it too
        return common
    return int(np.count_nonzero((tables[:, :common] == first[:common]).all(axis=0)))


def _not_above(cells: np.ndarray) -> np.ndarray:
    """int32: numbers of the cells with a block that the row above does not hold."""
    new = cells > 0
    new[1:] &= cells[1:] != cells[:-1]
    return new.ravel().nonzero()[0].astype(np.int32)


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
    cells: np.ndarray, new: np.ndarray, holders: np.ndarray, ends: np.ndarray, skip: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """node_start, node_stop, node_lo, node_hi of rows in depth-first order. `new`: the cells that the row above does
    not hold. Per block: how many rows hold it. Per row: its number of blocks. `skip`: columns before the cells."""
    # A row's new cells follow each other; a node begins with the first, and where others hold the block.
    width = cells.shape[1]
    held, row = holders.take(cells.ravel().take(new)), new // width
    begins = np.empty(len(new), bool)
    begins[0] = True
    np.not_equal(held[1:], held[:-1], out=begins[1:])
    begins[1:] |= row[1:] != row[:-1]
    first = begins.nonzero()[0]
    lo = row.take(first)
    hi = lo + held.take(first).astype(np.int32)
    start = new.take(first) - lo * width
    start[1:] += skip  # before which there is the first node only
    stop = ends.take(lo)
    np.copyto(stop[:-1], start[1:], where=lo[1:] == lo[:-1])  # the next node continues this row
    return start, stop, lo, hi
