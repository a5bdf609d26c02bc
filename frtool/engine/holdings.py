"""Which nodes and steps hold KV, and which give it up when blocks run out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from frtool.kernels.allocator import OutOfBlocks

from .eviction import eviction_order
from .rows import Kept, Row

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator

    from .swap import HostCopy, HostMemory


class Holdings:
    """The kept nodes and the steps that wait to be kept or dropped, and the branches of these and of growing rows."""

    def __init__(self, allocator: PhysicalKVAllocator, swap: HostMemory) -> None:
        self.allocator = allocator
        self.swap = swap
        self.restored_tokens = 0
        """Whose KV came back from host memory."""
        self.kept: dict[str, Kept] = {}
        """By node id, longest unused first."""
        self.done: dict[tuple[str, int], Row] = {}
        """Finished steps by parent and ordinal."""
        self.evicted: list[str] = []
        """Nodes that gave their KV up and that nobody has asked about since."""

    def bind(self, row: Row) -> None:
        """Fork the row from the nearest node above it that holds KV. What lies between comes back from host memory, as
        far as it is there; the rest is fed again."""
        node, missing = row.parent.anchor()
        if node is None:
            row.branch_id = self.allocator.alloc_branch(0).branch_id
        else:
            assert node.branch_id is not None
            row.branch_id = self.allocator.fork(node.branch_id, node.length).branch_id
        restored = self._restore(row.branch_id, missing)
        row.prefix = list(chain.from_iterable(at.tokens for at in missing[restored:]))
        row.fed = 0
        if row.host is not None and not row.prefix and self._append_copy(row.branch_id, row.host):
            row.fed = row.host.tokens
        row.host = None

    def put_back(self, row: Row) -> None:
        """Free the branch of a row that is to wait. Its own tokens go to host memory where that is worth it."""
        if row.branch_id is not None:
            row.host = self.swap.copy(row.branch_id, row.parent.length, self.allocator.length(row.branch_id))
        self.unbind(row)

    def _restore(self, branch_id: int, missing: list[Kept]) -> int:
        """Append the first of these nodes to a branch, from their copies in host memory. Returns how many."""
        for count, node in enumerate(missing):
            if node.host is None or not self._append_copy(branch_id, node.host):
                return count
            if not node.released:
                node.branch_id = self.allocator.fork(branch_id, node.length).branch_id
                node.host = None
        return len(missing)

    def _append_copy(self, branch_id: int, copied: HostCopy) -> bool:
        """Append the tokens of a copy to a branch; whether there was room for them."""
        kv = self.swap.bring_back(copied)
        if kv is None:
            return False
        try:
            self.allocator.append(branch_id, copied.tokens)
        except OutOfBlocks:
            return False
        self.allocator.write_slots(self.allocator.last_slots([branch_id], [copied.tokens]), kv)
        self.restored_tokens += copied.tokens
        return True

    def unbind(self, holder: Row | Kept) -> None:
        """Free what a row or a node holds, if it holds anything."""
        if holder.branch_id is not None:
            self.allocator.free_branch(holder.branch_id)
            holder.branch_id = None

    def blocks_to_bind(self, row: Row, more: int) -> int:
        """The most blocks that the first pass of a row takes, with `more` new tokens and the copy of a shared block."""
        _, missing = row.parent.anchor()
        tokens = sum(len(node.tokens) for node in missing) + len(row.tokens) + more
        return -(-tokens // self.allocator.block_size) + 1

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
        """Evict until `blocks` are free or nothing is left to evict; say whether anything was evicted. What can be
        continued goes to host memory where that is worth it.

        `busy` are the parents of growing rows.
        """
        evicted = False
        holders: list[Kept | Row] = [*eviction_order(self.kept.values(), busy), *self.done.values()]
        for holder in holders:
            if self.allocator.free_blocks >= blocks:
                break
            if holder.branch_id is not None:
                evicted = True
                if holder.logits is not None:
                    start = holder.length - len(holder.tokens)
                    holder.host = self.swap.copy(holder.branch_id, start, holder.length)
            if isinstance(holder, Kept):
                self.evicted.append(holder.id)
            self.unbind(holder)
        return evicted
