"""The KV pool of a reward model, which the scorers of several questions may share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from frtool.engine.batch import DecodeBatch
from frtool.engine.options import CPU_BLOCK, GPU_BLOCK
from frtool.engine.pool import block_bytes
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.models.memory import free_memory

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

_SHARE = 0.25
"""Of the free memory: the policy needs more."""
_CPU_BYTES = 1 << 28


class Holder(Protocol):
    """Who holds branches in the pool."""

    def evict(self, blocks: int) -> bool:
        """Free branches until `blocks` are free in the pool; whether any was freed."""


class RewardPool:
    """`num_blocks`: by default a share of the free memory, no more than `expected_tokens` take."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_blocks: int | None = None,
        block_size: int | None = None,
        expected_tokens: int | None = None,
    ) -> None:
        self.loaded = loaded
        on_gpu = loaded.device.type == "cuda"
        size = block_size or (GPU_BLOCK if on_gpu else CPU_BLOCK)
        blocks = num_blocks
        if blocks is None:
            free = int(free_memory(loaded.device) * _SHARE)
            blocks = max((free if on_gpu else min(free, _CPU_BYTES)) // block_bytes(loaded, size), 1)
            if expected_tokens is not None:
                blocks = min(blocks, -(-expected_tokens // size))
        self.allocator = PhysicalKVAllocator(
            blocks, size, loaded.num_kv_heads, loaded.head_dim, loaded.device, loaded.num_layers, loaded.dtype
        )
        self.batch = DecodeBatch(loaded, self.allocator, 64)
        self.holders: list[Holder] = []
        """Oldest first."""

    def evict(self, blocks: int) -> bool:
        """Let the holders free branches, the youngest first, until `blocks` are free; whether any was freed."""
        evicted = False
        for holder in reversed(self.holders):
            evicted = holder.evict(blocks) or evicted
            if self.allocator.free_blocks >= blocks:
                break
        return evicted
