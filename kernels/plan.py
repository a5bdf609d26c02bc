"""Branches to a tree of nodes: which blocks are read by whom.

A node is a maximal run of blocks that exactly the same branches hold. Two branches that hold the same block hold the
same blocks before it (see `allocator`), so how many branches hold a block says which node it is in, and the nodes form
a forest. Pure numpy: no work grows with tokens, only with blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    node_parent: np.ndarray
    """int32 `[N]`: the node above, -1 for a root."""

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
    ids = tuple(map(int, branch_ids))
    if not ids:
        raise ValueError("attention needs at least one branch")
    if len(set(ids)) != len(ids):
        raise ValueError("a branch is listed twice")
    tables, counts = allocator.layout(ids)
    lengths = counts.astype(np.int32)
    queries = np.ones(len(ids), np.int32) if q_lens is None else np.asarray(q_lens, np.int32)
    if queries.shape != lengths.shape:
        raise ValueError(f"{len(ids)} branches but {queries.size} query counts")
    bad = ((queries < 1) | (queries > lengths)).nonzero()[0]
    if len(bad):
        i = bad[0]
        raise ValueError(f"branch {ids[i]} of {lengths[i]} tokens cannot have {queries[i]} query tokens")
    q_start = np.zeros(len(ids) + 1, np.int32)
    queries.cumsum(out=q_start[1:])
    # Blocks that all branches hold form one node: of these columns one is enough to plan the rest.
    skip = max(int(np.count_nonzero((tables == tables[0]).all(axis=0))) - 1, 0)
    order = _depth_first(tables[:, skip:], allocator.num_blocks)
    start, stop, lo, hi, parent = _nodes(tables[order, skip:], allocator.num_blocks)
    start[start > 0] += skip
    stop += skip
    return TreePlan(ids, allocator.block_size, queries, q_start, lengths, tables, order, start, stop, lo, hi, parent)


def _depth_first(tables: np.ndarray, num_blocks: int) -> np.ndarray:
    """int32 `[B]`: an order in which branches with a common prefix are neighbours. Depends on who shares what and on
    the given order, never on where blocks lie."""
    rows = len(tables)
    first = np.full(num_blocks + 1, rows, np.int32)
    # With repeated indices the last assignment stands: the lowest row that holds the block.
    first[tables[::-1]] = np.arange(rows - 1, -1, -1, dtype=np.int32)[:, None]
    first[-1] = rows
    leaders = first.take(tables, mode="wrap")
    # A row follows the row that first held its deepest block of another's, and leaves it at that depth.
    depth = np.count_nonzero(leaders < np.arange(rows)[:, None], axis=1)
    leader = leaders[np.arange(rows), np.maximum(depth - 1, 0)]
    leader[depth == 0] = -1
    alone = leader < 0
    if alone[np.maximum(leader, 0)].all():  # nobody follows a follower: a prompt and its branches, no deeper
        return np.lexsort((-depth, ~alone, np.where(alone, np.arange(rows), leader))).astype(np.int32)
    followers: list[list[int]] = [[] for _ in range(rows + 1)]
    for row in (-depth).argsort(kind="stable").tolist():
        followers[leader[row]].append(row)
    order = []
    stack = followers[-1][::-1]
    while stack:
        row = stack.pop()
        order.append(row)
        stack.extend(reversed(followers[row]))
    return np.array(order, np.int32)


def _nodes(tables: np.ndarray, num_blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """node_start, node_stop, node_lo, node_hi, node_parent of tables in depth-first order."""
    held = tables >= 0
    holders = np.bincount(tables[held])
    counts = np.where(held, holders.take(tables, mode="clip"), 0)
    new = held.copy()  # cells whose block the row above does not hold
    new[1:] &= tables[1:] != tables[:-1]
    begins = new.copy()
    begins[:, 1:] &= counts[:, 1:] != counts[:, :-1]
    lo, start = np.nonzero(begins)
    hi = lo + counts[lo, start]
    node_of_block = np.empty(num_blocks, np.int32)
    node_of_block[tables[new]] = begins[new].cumsum() - 1
    parent = np.where(start > 0, node_of_block[tables[lo, start - 1]], -1)
    row_stop = np.count_nonzero(held, axis=1)[lo]
    follows = np.concatenate([lo[1:] == lo[:-1], [False]])  # the next node continues this row
    stop = np.where(follows, np.concatenate([start[1:], [0]]), row_stop)
    return tuple(a.astype(np.int32) for a in (start, stop, lo, hi, parent))  # type: ignore[return-value]
