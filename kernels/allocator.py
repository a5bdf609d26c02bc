"""The paged KV cache that all branches of a search tree share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .ledger import BlockLedger, Branch, OutOfBlocks, UnknownBranch

__all__ = ["AllocatorStats", "Branch", "OutOfBlocks", "PhysicalKVAllocator", "UnknownBranch"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class AllocatorStats:
    """Counters of the pool. Tokens are those of the live branches now; peaks and totals are since construction."""

    blocks_used: int
    blocks_total: int
    physical_tokens: int
    """Tokens really stored: every block once, up to its longest holder."""
    logical_tokens: int
    """Sum of the branches' lengths: what they would store without sharing."""
    shared_tokens: int
    """`logical_tokens - physical_tokens`: what sharing saves now."""
    peak_blocks: int
    bytes_used: int
    peak_bytes: int
    unshared_peak_bytes: int
    """Peak, had every branch had blocks of its own."""
    forks: int
    frees: int
    copies: int
    """Tail blocks copied on the first write after a fork."""


class PhysicalKVAllocator(BlockLedger):
    """A pool of `num_blocks` blocks of `block_size` tokens, one pool for `num_layers` layers.

    `k_cache`, `v_cache`: `[num_layers, num_blocks, block_size, num_kv_heads, head_dim]`, zero at first. `dtype` is
    float32, float16 or bfloat16; by default float16 on CUDA and float32 elsewhere. Branches are those of `BlockLedger`.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        num_kv_heads: int = 8,
        head_dim: int = 128,
        device: str | torch.device = "cpu",
        num_layers: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_blocks, block_size)
        sizes = {"num_kv_heads": num_kv_heads, "head_dim": head_dim, "num_layers": num_layers}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.device = torch.device(device)
        if dtype is None:
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.num_layers = num_layers
        self.dtype = dtype
        shape = (2, num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        with torch.inference_mode(False):  # else they could be written in inference mode only
            self.kv_cache = torch.zeros(shape, dtype=dtype, device=self.device)
        self.k_cache, self.v_cache = self.kv_cache.unbind(0)
        self._slot_view = self.kv_cache.view(2, num_layers, num_blocks * block_size, num_kv_heads, head_dim)
        tokens = self.kv_cache.view(-1, num_kv_heads * head_dim)
        self._tokens_from = [tokens[layer * num_blocks * block_size :] for layer in range(num_layers)]
        self._heads_from = [rows.view(-1, head_dim) for rows in self._tokens_from]
        self._layers = [(self._slot_view[0, layer], self._slot_view[1, layer]) for layer in range(num_layers)]
        self.block_bytes = self.kv_cache.element_size() * self.kv_cache.numel() // num_blocks

        self._scratch: dict[str, torch.Tensor] = {}

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store K and V `[T, num_kv_heads, head_dim]` of one layer at int64 `slots` `[T]`, cast to the pool's dtype.

        On CUDA a token with a negative slot is padding and left out; no host check is made, so that it can be captured.
        """
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer {layer} is not one of the pool's {self.num_layers}")
        expected = (slots.shape[0], self.num_kv_heads, self.head_dim)
        if k.shape != expected or v.shape != expected:
            raise ValueError(f"K and V must be {expected}, not {tuple(k.shape)} and {tuple(v.shape)}")
        if k.is_cuda:
            from .write_kernel import write_tokens  # Triton does not exist on every platform

            write_tokens(k, v, self._slot_view[0, layer], self._slot_view[1, layer], slots)
            return
        keys, values = self._layers[layer]
        keys.index_copy_(0, slots, k.to(self.dtype))
        values.index_copy_(0, slots, v.to(self.dtype))

    def rows_from(self, layer: int, *, by_token: bool) -> torch.Tensor:
        """The cache from the K of a layer on, in rows: a view `[rows, head_dim]`, (slot, head) after (slot, head), or
        `by_token` `[rows, num_kv_heads * head_dim]`, slot after slot. The V of a token lies as many rows after its K as
        all K's take."""
        return self._tokens_from[layer] if by_token else self._heads_from[layer]

    def read_slots(self, slots: np.ndarray) -> torch.Tensor:
        """A copy of K and V at int64 `slots` `[T]`: `[2, num_layers, T, num_kv_heads, head_dim]`, on the device."""
        return self._slot_view.index_select(2, torch.from_numpy(slots).to(self.device))

    def write_slots(self, slots: np.ndarray, kv: torch.Tensor) -> None:
        """Store what `read_slots` gave at other slots."""
        self._slot_view.index_copy_(2, torch.from_numpy(slots).to(self.device), kv)

    def scratch(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uninitialised working memory on the pool's device, kept and reused under this name, so that a backend does
        not pay for fresh pages at every call. Valid until the next call with the same name."""
        numel = math.prod(shape)
        buffer = self._scratch.get(name)
        if buffer is None or buffer.numel() < numel or buffer.dtype != dtype:
            with torch.inference_mode(False):  # else it could be written in inference mode only
                buffer = self._scratch[name] = torch.empty(numel, dtype=dtype, device=self.device)
        return buffer[:numel].view(shape)

    def stats(self) -> AllocatorStats:
        """The counters now. No work grows with blocks."""
        used = self.num_blocks - self.free_blocks
        physical, logical = self.token_counts()
        return AllocatorStats(
            blocks_used=used,
            blocks_total=self.num_blocks,
            physical_tokens=physical,
            logical_tokens=logical,
            shared_tokens=logical - physical,
            peak_blocks=self._peak_blocks,
            bytes_used=used * self.block_bytes,
            peak_bytes=self._peak_blocks * self.block_bytes,
            unshared_peak_bytes=self._peak_table_blocks * self.block_bytes,
            forks=self._forks,
            frees=self._frees,
            copies=self._copies,
        )

    def _copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        super()._copy_blocks(sources, targets)
        src = torch.tensor(sources, device=self.device)
        dst = torch.tensor(targets, device=self.device)
        self.kv_cache.index_copy_(2, dst, self.kv_cache.index_select(2, src))
