"""Which branch holds which blocks: tables, reference counts and the free list. No contents, no torch.

A branch is a path of tokens. Its token at position p lives in slot `table[p // block_size] * block_size +
p % block_size`. A fork shares the blocks of its parent by reference count; a partly filled tail block that is shared
is copied when one of its holders first grows. So two branches that hold the same block hold the same blocks before it
too, and the counts never rise along a branch: the blocks that only it holds are the end of its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class OutOfBlocks(RuntimeError):
    """The pool has too few free blocks. Nothing was changed.

    `needed`: blocks that the call would take. `free`: blocks that were free.
    """

    def __init__(self, needed: int, free: int, detail: str = "") -> None:
        super().__init__(f"{needed} more KV blocks needed, {free} free{detail}")
        self.needed = needed
        self.free = free


class UnknownBranch(KeyError):
    """No live branch has this id: it was never given out, or it was freed."""

    def __init__(self, branch_id: object) -> None:
        super().__init__(branch_id)
        self.branch_id = branch_id

    def __str__(self) -> str:
        return f"no live branch has id {self.branch_id!r}"


@dataclass(slots=True, eq=False)
class Branch:
    """A live branch. `length` (tokens) follows every append; change it through the allocator only."""

    branch_id: int
    length: int
    _row: int = field(repr=False)


@dataclass(slots=True)
class _Found:
    """Branches by id (the objects once they are needed), their table rows int64 `[n]`, and what `keep` was given for
    them."""

    ids: tuple[int, ...]
    rows: np.ndarray
    branches: list[Branch] | None = field(default=None, init=False)
    distinct: bool = field(init=False)
    kept: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        # Each branch has a row of its own.
        self.distinct = np.count_nonzero(np.bincount(self.rows)) == len(self.rows)


class BlockLedger:
    """`num_blocks` blocks of `block_size` tokens. Branch ids are never reused. Not thread-safe.

    A call that raises (ValueError, UnknownBranch, OutOfBlocks) has changed nothing.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._branches: dict[int, Branch] = {}
        self._row_of: dict[int, int] = {}
        """The branches' rows by id, for those who ask for many."""
        self._next_id = 0
        self._refs = np.zeros(num_blocks, np.int64)
        self._tables = np.full((8, 8), -1, np.int32)
        self._lengths = np.zeros(8, np.int64)
        """Tokens of the branch of each table row; 0 where there is none."""
        self._found: _Found | None = None
        self._free_rows = list(range(7, -1, -1))
        # A stack whose top is the lowest block of a fresh pool: what is taken together lies together.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._table_blocks = 0
        self._peak_table_blocks = 0
        self._peak_blocks = 0
        self._forks = 0
        self._frees = 0
        self._copies = 0

    def alloc_branch(
        self, num_tokens: int, parent_branch_id: int | None = None, fork_position: int | None = None
    ) -> Branch:
        """A branch of `num_tokens` tokens in total, the first `fork_position` of them shared with the parent.

        `fork_position` defaults to the parent's whole length. The tokens after it have room, but their K and V are
        for the caller to write. Raises ValueError, UnknownBranch, OutOfBlocks.
        """
        if num_tokens < 0:
            raise ValueError(f"num_tokens must be at least 0, not {num_tokens}")
        if parent_branch_id is None:
            if fork_position is not None:
                raise ValueError(f"fork_position {fork_position} needs a parent_branch_id")
            blocks = self._take(self._blocks_for(num_tokens))
            branch = self._new_branch(num_tokens, len(blocks))
            self._tables[branch._row, : len(blocks)] = blocks
            self._refs[blocks] = 1
            self._count_table_blocks(len(blocks))
            return branch
        parent = self._branch(parent_branch_id)
        position = self._fork_position(parent, fork_position)
        if position > num_tokens:
            raise ValueError(f"num_tokens {num_tokens} is below the fork position {position}")
        if num_tokens > position:
            self._require(self._blocks_for(num_tokens) - position // self.block_size)
        branch = self._share(parent, position)
        if num_tokens > position:
            self.append(branch.branch_id, num_tokens - position)
        return branch

    def fork(self, branch_id: int, position: int | None = None) -> Branch:
        """A new branch that shares the first `position` tokens of another (default: all of them). Takes no block."""
        parent = self._branch(branch_id)
        return self._share(parent, self._fork_position(parent, position))

    def append(self, branch_id: int, num_tokens: int = 1) -> None:
        """Make room for `num_tokens` (at least 1) more tokens, and for the write, a copy of a shared tail block."""
        branch = self._branch(branch_id)
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, not {num_tokens}")
        length, size = branch.length, self.block_size
        have = -(-length // size)
        want = -(-(length + num_tokens) // size)
        start = have
        if length % size and self._refs[self._tables[branch._row, have - 1]] > 1:
            start = have - 1
        if want > start:
            blocks = self._take(want - start)
            if want > self._tables.shape[1]:
                self._widen(want)
            row = self._tables[branch._row]
            if start < have:
                shared = int(row[start])
                self._refs[shared] -= 1
                self._copy_blocks([shared], blocks[:1])
                self._forget()
            for index, block in enumerate(blocks, start):
                row[index] = block
                self._refs[block] = 1
            self._count_table_blocks(want - have)
        branch.length = self._lengths[branch._row] = length + num_tokens

    def append_many(self, branch_ids: Sequence[int], counts: Sequence[int]) -> None:
        """`append` for several distinct branches at once: all of them or, when blocks run out, none."""
        found, counts_ = self._find(branch_ids), np.asarray(counts, np.int64)
        rows, start, want, copied, sources = self._growth(found, counts_)
        taken = want - start
        needed = int(taken.sum())
        if needed:
            blocks = np.array(self._take(needed), np.int64)
            self._widen(int(want.max()))
            first = np.cumsum(taken) - taken
            columns = np.arange(needed) + np.repeat(start - first, taken)
            self._tables[np.repeat(rows, taken), columns] = blocks
            self._refs[blocks] = 1
            if sources:
                np.subtract.at(self._refs, sources, 1)
                self._copy_blocks(sources, blocks[first[copied]].tolist())
                self._forget()
            self._count_table_blocks(needed - len(sources))
        lengths = self._lengths[rows] + counts_
        self._lengths[rows] = lengths
        if found.branches is None:
            found.branches = list(map(self._branches.__getitem__, found.ids))
        for branch, length in zip(found.branches, lengths.tolist(), strict=True):
            branch.length = length

    def free_branch(self, branch_id: int) -> None:
        """End a branch. Blocks that other branches hold live on. O(blocks of the branch)."""
        branch = self._branch(branch_id)
        table = self._tables[branch._row, : -(-branch.length // self.block_size)]
        left = self._refs[table] - 1
        self._refs[table] = left
        dead = table[np.count_nonzero(left) :]
        self._free.extend(dead[::-1].tolist())
        del self._branches[branch_id], self._row_of[branch_id]
        self._found = None
        self._lengths[branch._row] = 0
        self._free_rows.append(branch._row)
        self._table_blocks -= len(table)
        self._frees += 1

    prune = free_branch

    def length(self, branch_id: int) -> int:
        """Tokens of the branch."""
        return self._branch(branch_id).length

    def lengths(self, branch_ids: Sequence[int]) -> np.ndarray:
        """int64 `[len(branch_ids)]`: tokens of each branch."""
        lengths: np.ndarray = self._lengths[self._find(branch_ids).rows]
        return lengths

    def are_distinct(self, branch_ids: Sequence[int]) -> bool:
        """Whether no branch is listed twice."""
        return self._find(branch_ids).distinct

    def block_table(self, branch_id: int) -> np.ndarray:
        """int32 `[blocks]`, a copy: the physical blocks of the branch in order."""
        branch = self._branch(branch_id)
        return self._tables[branch._row, : self._blocks_for(branch.length)].copy()

    def block_tables(self, branch_ids: Sequence[int]) -> np.ndarray:
        """int32 `[len(branch_ids), most blocks]`, a copy; rows end in -1 where a branch has fewer blocks."""
        return self.layout(branch_ids)[0]

    def layout(self, branch_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`block_tables` and `lengths` of the branches, and int64 `[len(branch_ids)]` how many blocks each has."""
        rows = self._find(branch_ids).rows
        lengths = self._lengths[rows]
        blocks = -(-lengths // self.block_size)
        width = int(np.maximum.reduce(blocks, initial=0))
        least = int(np.minimum.reduce(blocks, initial=width))
        tables = self._tables[rows, :width]
        if least < width:
            tables[:, least:][np.arange(least, width) >= blocks[:, None]] = -1
        return tables, lengths, blocks

    def slots(self, branch_id: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """int64 `[stop - start]`: slots of the tokens at positions `start` to `stop` (default: the end)."""
        branch = self._branch(branch_id)
        stop = branch.length if stop is None else stop
        if not 0 <= start <= stop <= branch.length:
            raise ValueError(f"positions {start} to {stop} do not lie in branch {branch_id} of {branch.length} tokens")
        positions = np.arange(start, stop, dtype=np.int64)
        blocks = self._tables[branch._row, positions // self.block_size]
        slots: np.ndarray = blocks * self.block_size + positions % self.block_size
        return slots

    def last_slots(self, branch_ids: Sequence[int], counts: Sequence[int]) -> np.ndarray:
        """int64 `[sum(counts)]`: slots of the last `counts[i]` tokens of each branch, branch after branch."""
        rows = self._find(branch_ids).rows
        lengths = self._lengths[rows]
        counts_ = np.asarray(counts, np.int64)
        if counts_.shape != lengths.shape or (counts_ < 0).any() or (counts_ > lengths).any():
            raise ValueError(f"counts {list(counts)} do not fit branches of {lengths.tolist()} tokens")
        if (counts_ == 1).all():
            positions = lengths - 1
        else:
            positions = np.arange(int(counts_.sum())) + np.repeat(lengths - np.cumsum(counts_), counts_)
            rows = np.repeat(rows, counts_)
        blocks = self._tables[rows, positions // self.block_size]
        slots: np.ndarray = blocks * self.block_size + positions % self.block_size
        return slots

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def branch_ids(self) -> tuple[int, ...]:
        """The live branches, oldest first."""
        return tuple(self._branches)

    def blocks_needed(self, branch_ids: Sequence[int], counts: Sequence[int]) -> int:
        """Blocks that `append_many(branch_ids, counts)` would take."""
        _, start, want, _, _ = self._growth(self._find(branch_ids), np.asarray(counts, np.int64))
        return int((want - start).sum())

    def token_counts(self) -> tuple[int, int]:
        """Tokens of the live branches: stored (every block once, up to its longest holder), and summed by branch.
        No work grows with blocks."""
        ends = self._lengths % self.block_size
        rows = ends.nonzero()[0]
        fill, tails = ends[rows], self._tables[rows, self._lengths[rows] // self.block_size]
        shared = self._refs[tails] > 1
        missing = int((self.block_size - fill[~shared]).sum())
        if shared.any():
            # The longest holder of each shared tail; where not all holders end in it, some fill it.
            fill, tails = fill[shared], tails[shared]
            order = np.lexsort((-fill, tails))
            fill, tails = fill[order], tails[order]
            blocks, first, holders = np.unique(tails, return_index=True, return_counts=True)
            missing += int((self.block_size - fill[first])[holders == self._refs[blocks]].sum())
        used = self.num_blocks - len(self._free)
        return used * self.block_size - missing, int(self._lengths.sum())

    def check(self) -> None:
        """Prove the counts, the free list and the sharing from the branches alone, or raise AssertionError."""
        refs = np.zeros(self.num_blocks, np.int64)
        held_at: dict[int, tuple[int, int]] = {}  # block -> (its index, the block before it)
        rows = set()
        table_blocks = 0
        for branch in self._branches.values():
            blocks = self._tables[branch._row, : self._blocks_for(branch.length)].tolist()
            _prove(len(set(blocks)) == len(blocks), f"branch {branch.branch_id} holds a block twice")
            _prove(all(0 <= b < self.num_blocks for b in blocks), f"branch {branch.branch_id} holds no such block")
            for index, block in enumerate(blocks):
                place = (index, blocks[index - 1] if index else -1)
                _prove(held_at.setdefault(block, place) == place, f"block {block} is shared without its prefix")
            refs[blocks] += 1
            rows.add(branch._row)
            _prove(branch.length == self._lengths[branch._row], f"branch {branch.branch_id} has two lengths")
            table_blocks += len(blocks)
        free = set(self._free)
        _prove(np.array_equal(refs, self._refs), "reference counts disagree with the branches")
        _prove(len(free) == len(self._free), "a block is free twice")
        _prove(free == set(np.flatnonzero(refs == 0).tolist()), "the free list is not the blocks that nobody holds")
        _prove(len(rows) == len(self._branches), "two branches share a table row")
        _prove(rows.isdisjoint(self._free_rows), "a live branch's table row is free")
        _prove(len(rows) + len(self._free_rows) == len(self._tables), "a table row is lost")
        _prove(table_blocks == self._table_blocks, "the unshared count disagrees with the branches")
        _prove(self.num_blocks - len(free) <= self._peak_blocks, "more blocks are used than the peak")

    def keep(self, branch_ids: Sequence[int], value: Any) -> None:
        """Hold what follows from the blocks that these branches share, as long as nothing else is asked for."""
        self._find(branch_ids).kept = value

    def kept(self, branch_ids: Sequence[int]) -> Any:
        """What `keep` was given; None if it was not, or if since then a branch has ended or copied a shared block.
        Until then blocks are only added, each to one branch."""
        return self._find(branch_ids).kept

    def _forget(self) -> None:
        if self._found is not None:
            self._found.kept = None

    def _branch(self, branch_id: int) -> Branch:
        try:
            return self._branches[branch_id]
        except KeyError:
            raise UnknownBranch(branch_id) from None

    def _find(self, branch_ids: Sequence[int]) -> _Found:
        """Where the branches are. The same ones are asked for several times a step, so the last answer is kept."""
        ids = tuple(branch_ids)
        found = self._found
        if found is None or (found.ids is not ids and found.ids != ids):
            try:
                rows = np.fromiter(map(self._row_of.__getitem__, ids), np.int64, len(ids))
            except KeyError as unknown:
                raise UnknownBranch(unknown.args[0]) from None
            found = self._found = _Found(ids, rows)
        return found

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _fork_position(self, parent: Branch, position: int | None) -> int:
        if position is None:
            return parent.length
        if not 0 <= position <= parent.length:
            raise ValueError(f"fork position {position} is outside branch {parent.branch_id} of {parent.length} tokens")
        return position

    def _require(self, needed: int) -> None:
        if needed > len(self._free):
            size, live = self.block_size, len(self._branches)
            raise OutOfBlocks(needed, len(self._free), f" of {self.num_blocks} ({size} tokens each; {live} branches)")

    def _take(self, count: int) -> list[int]:
        """Blocks off the free stack; their counts are still 0."""
        self._require(count)
        if not count:
            return []
        blocks = self._free[: -count - 1 : -1]
        del self._free[-count:]
        used = self.num_blocks - len(self._free)
        if used > self._peak_blocks:
            self._peak_blocks = used
        return blocks

    def _new_branch(self, length: int, num_blocks: int) -> Branch:
        if not self._free_rows:
            rows = len(self._tables)
            self._tables = np.concatenate([self._tables, np.full_like(self._tables, -1)])
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
            self._free_rows.extend(range(2 * rows - 1, rows - 1, -1))
        if num_blocks > self._tables.shape[1]:
            self._widen(num_blocks)
        branch = Branch(self._next_id, length, self._free_rows.pop())
        self._branches[self._next_id] = branch
        self._row_of[self._next_id] = branch._row
        self._lengths[branch._row] = length
        self._next_id += 1
        return branch

    def _share(self, parent: Branch, position: int) -> Branch:
        num_blocks = -(-position // self.block_size)
        branch = self._new_branch(position, num_blocks)
        table = self._tables[parent._row, :num_blocks]
        self._tables[branch._row, :num_blocks] = table
        self._refs[table] += 1
        self._count_table_blocks(num_blocks)
        self._forks += 1
        return branch

    def _growth(
        self, found: _Found, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int], list[int]]:
        """What `append_many` would do. Per branch its table row, the first and one-past-last index of the table that
        get new blocks, then the branches whose tail is copied and the blocks they copy."""
        rows = found.rows
        if counts.shape != rows.shape:
            raise ValueError(f"{len(rows)} branches but {counts.size} counts")
        if not found.distinct:
            raise ValueError("a branch is appended to twice in one call")
        if (counts < 1).any():
            raise ValueError(f"num_tokens must be at least 1, not {counts.min()}")
        lengths = self._lengths[rows]
        start = -(-lengths // self.block_size)
        want = -(-(lengths + counts) // self.block_size)
        tails = self._tables[rows, start - 1]
        copied: list[int] = []
        sources: list[int] = []
        holders: dict[int, int] = {}
        for i in ((self._refs[tails] > 1) & (lengths % self.block_size > 0)).nonzero()[0].tolist():
            tail = int(tails[i])  # the last holder of a tail writes in place
            left = holders.get(tail, int(self._refs[tail]))
            if left > 1:
                copied.append(i)
                sources.append(tail)
                start[i] -= 1
            holders[tail] = left - 1
        return rows, start, want, copied, sources

    def _copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        """Called when the contents of `sources` must appear in `targets`, before anything is written to either."""
        self._copies += len(sources)

    def _count_table_blocks(self, change: int) -> None:
        self._table_blocks += change
        if self._table_blocks > self._peak_table_blocks:
            self._peak_table_blocks = self._table_blocks

    def _widen(self, num_blocks: int) -> None:
        """Make table rows hold at least `num_blocks` entries."""
        rows, columns = self._tables.shape
        if num_blocks > columns:
            tables = np.full((rows, max(num_blocks, 2 * columns)), -1, np.int32)
            tables[:, :columns] = self._tables
            self._tables = tables


def _prove(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
