"""Which nodes and steps hold KV, and which give it up when blocks run out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .eviction import eviction_order
from .rows import Kept, Row

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator


class Holdings:
    """The kept nodes and the steps that wait to be kept or dropped, and the branches of these and of growing rows."""

    def __init__(self, allocator: PhysicalKVAllocator) -> None:
        self.allocator = allocator
        self.kept: dict[str, Kept] = {}
        """By node id, longest unused first."""
        self.done: dict[tuple[str, int], Row] = {}
        """Finished steps by parent and ordinal."""
        self.evicted: list[str] = []
        """Nodes that gave their KV up and that nobody has asked about since."""

    def bind(self, row: Row) -> None:
        """Fork the row from the nearest node above it that holds KV; what lies between is fed again."""
        node, row.prefix = row.parent.anchor()
        if node is None:
            row.branch_id = self.allocator.alloc_branch(0).branch_id
        else:
            assert node.branch_id is not None
            row.branch_id = self.allocator.fork(node.branch_id, node.length).branch_id
        row.fed = 0

    def unbind(self, holder: Row | Kept) -> None:
        """Free what a row or a node holds, if it holds anything."""
        if holder.branch_id is not None:
            self.allocator.free_branch(holder.branch_id)
            holder.branch_id = None

    def blocks_to_bind(self, row: Row, more: int) -> int:
        """The most blocks that the first pass of a row takes, with `more` new tokens and the copy of a shared block."""
        _, missing = row.parent.anchor()
        return -(-(len(missing) + len(row.tokens) + more) // self.allocator.block_size) + 1

    def take_back(self, row: Row, tokens: int = 1) -> None:
        """Remove the last tokens of a row's branch."""
        assert row.branch_id is not None
        whole = row.branch_id
        row.branch_id = self.allocator.fork(whole, self.allocator.length(whole) - tokens).branch_id
        self.allocator.free_branch(whole)

    def restore_parent(self, row: Row) -> None:
        """Give an evicted parent its KV back, which the row has just recomputed."""
        parent = row.parent
        if parent.branch_id is None and not parent.released:
            assert row.branch_id is not None
            parent.branch_id = self.allocator.fork(row.branch_id, parent.length).branch_id

    def evict(self, blocks: int, busy: Iterable[Kept]) -> bool:
        """Evict until `blocks` are free or nothing is left to evict; say whether anything was evicted.

        `busy` are the parents of growing rows.
        """
        evicted = False
        holders: list[Kept | Row] = [*eviction_order(self.kept.values(), busy), *self.done.values()]
        for holder in holders:
            if self.allocator.free_blocks >= blocks:
                break
            evicted = evicted or holder.branch_id is not None
            if isinstance(holder, Kept):
                self.evicted.append(holder.id)
            self.unbind(holder)
        return evicted
