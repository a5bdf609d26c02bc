"""KV of evicted nodes in host memory, where a copy is cheaper than reading the tokens again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from frtool.models.memory import free_host_memory

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator
    from frtool.models.load import LoadedModel

# A data-centre GPU's dense 16-bit rate in large passes, and its link to the host. What counts is the quotient, some
# 8,000 operations a byte, which others come near: a choice by it is the same on every machine and in every run.
OPERATIONS_A_SECOND = 4e14
BYTES_A_SECOND = 5e10
TRANSFER_SECONDS = 5e-5
"""Of a transfer of nothing: three launches and their bookkeeping."""
_SHARE = 0.25
"""Of the free host memory, where nobody says."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class HostCopy:
    """K and V of some tokens of a path: [2, layers, tokens, kv_heads, head_dim], in memory that a GPU copies from."""

    kv: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.kv.shape[2]


class HostMemory:
    """Copies of evicted nodes, at most `limit` bytes of them. A copy ends when nothing refers to it any more.

    `limit` None: on a GPU a share of the free host memory, for nodes that `worth_a_copy` accepts; elsewhere nothing,
    because the pool is host memory itself. Where it is given, every node is copied that finds room.

    Copies are queued on the current stream like the passes, so they are made before the blocks are overwritten, and no
    one waits for them.
    """

    def __init__(self, loaded: LoadedModel, allocator: PhysicalKVAllocator, limit: int | None) -> None:
        self._loaded = loaded
        self._allocator = allocator
        self._token_bytes = allocator.block_bytes // allocator.block_size
        self._on_gpu = loaded.device.type == "cuda"
        self._always = limit is not None
        self.limit = limit if limit is not None else int(free_host_memory() * _SHARE) if self._on_gpu else 0
        self.used = 0
        """Bytes."""

    def copy(self, branch_id: int, start: int, stop: int) -> HostCopy | None:
        """The tokens at positions `start` to `stop` of a branch, or None where they are not to be copied."""
        tokens = stop - start
        size = tokens * self._token_bytes
        if tokens < 1 or self.used + size > self.limit:
            return None
        if not self._always and not worth_a_copy(self._loaded.parameters, self._token_bytes, tokens):
            return None
        try:
            kv = self._allocator.read_slots(self._allocator.slots(branch_id, start, stop))
            host = torch.empty(kv.shape, dtype=kv.dtype, pin_memory=self._on_gpu)
            host.copy_(kv, non_blocking=True)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
                raise
            return None
        copied = HostCopy(host)
        self.used += size
        weakref.finalize(copied, self._forget, size)
        return copied

    def bring_back(self, copied: HostCopy) -> torch.Tensor | None:
        """The copy on the pool's device; None where that has no memory for it."""
        try:
            return copied.kv.to(self._loaded.device, non_blocking=True)
        except torch.OutOfMemoryError:
            return None

    def _forget(self, size: int) -> None:
        self.used -= size


def worth_a_copy(parameters: int, token_bytes: int, tokens: int) -> bool:
    """Whether copying the KV of so many tokens out and back takes less time than running the model on them again.

    out and back: 2 (tokens · bytes a token / link + a transfer's own time); again: tokens · 2 · parameters / rate.
    """
    copying = 2 * (tokens * token_bytes / BYTES_A_SECOND + TRANSFER_SECONDS)
    return copying < tokens * 2 * parameters / OPERATIONS_A_SECOND
