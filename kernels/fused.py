"""Tiles in one call of torch's flash attention: for bfloat16 on processors with AMX, which multiply it natively.

Queries and weights are rounded to bfloat16 before their products, as in the Triton kernel, and so is the mean of each
piece; sums are fp32. Whether a query's result has the same bits in any company is found by trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .grouped_work import Tails

_LEAST_ROWS = 2
"""One row alone is a matrix-vector product, which sums in another order."""
KEY_STEP = 16
"""A chunk of which only the first keys are seen may end after a multiple of this many."""


@dataclass(frozen=True, slots=True)
class FusedBatch:
    """n tiles: index tensors into rows of D numbers, for Hk kv heads, M = R * rows a query, C keys."""

    q_rows: torch.Tensor | None
    """int64 `[n * Hk * M]` into the rows of all queries, bfloat16; `[Hk * M]` where all tiles have the same. None where
    `q` holds them."""
    kv_rows: torch.Tensor | None
    """int64 `[n * 2 * C]` into the cache from a layer on, by token: of each tile the K rows, then the V rows. None
    where the cache is read in place."""
    place: tuple[int, int, int]
    """There: the first K row, rows from tile to tile, rows from K to V."""
    hidden: torch.Tensor | None
    """fp32 `[n, 1, M, C]`, or `[n, 1, 1, C]` for tiles of one query: -inf where the key must not be seen."""
    q: torch.Tensor
    """The rows `q_rows`."""
    queries: torch.Tensor
    """`q` as `[n, Hk, M, D]`."""
    stored: torch.Tensor
    """The rows `kv_rows` of the cache."""
    keys: torch.Tensor
    values: torch.Tensor
    """`[n, Hk, C, D]` of `stored`."""
    means: torch.Tensor
    """fp32 `[n, Hk, M, D]`."""
    logs: torch.Tensor
    """fp32 `[n, Hk, M]`: the logarithm of each mean's weight."""
    tails: Tails | None
    """As in `grouped_work.Batch`."""

    def attend(self, queries: torch.Tensor, stored: torch.Tensor, scale: float) -> None:
        """Fill `means` and `logs` from the rows of all queries and of the cache from a layer on."""
        if self.q_rows is not None:
            torch.index_select(queries, 0, self.q_rows, out=self.q)
        keys, values = self.keys, self.values
        if self.kv_rows is not None:
            torch.index_select(stored, 0, self.kv_rows, out=self.stored)
        else:
            first, step, to_values = self.place
            width, dim = stored.stride(0), keys.shape[3]
            start, strides = stored.storage_offset() + first * width, (step * width, dim, width, 1)
            keys = stored.as_strided(keys.shape, strides, start)
            values = stored.as_strided(values.shape, strides, start + to_values * width)
        mean, log = flash_attention(self.queries, keys, values, self.hidden, scale)
        self.means.copy_(mean)
        self.logs.copy_(log)


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of v `[n, Hk, C, D]` for each row of q `[n, Hk, M, D]`, and the logarithm of its weight, fp32
    `[n, Hk, M]`."""
    op: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    mean, log = op(q, k, v, 0.0, False, attn_mask=hidden, scale=scale)
    return mean, log


def fused_rows(dtype: torch.dtype, dim: int, device: torch.device) -> int:
    """The fewest rows of a tile that one call may compute, where it is right, fast, and gives each row the same bits
    in any company; else 0."""
    return _rows(dim, torch.get_num_threads()) if device.type == "cpu" and dtype == torch.bfloat16 else 0


@lru_cache
@torch.inference_mode()
def _rows(dim: int, threads: int) -> int:
    try:
        return _LEAST_ROWS if torch.cpu._is_amx_tile_supported() and _holds(dim, threads) else 0
    except (AttributeError, RuntimeError, NotImplementedError):  # another build of torch
        return 0


def _holds(dim: int, threads: int) -> bool:
    """Tiles of all sizes that are in use, for one and for more heads, whole and ended early, against their sum in fp32
    and against each other."""
    generator = torch.Generator().manual_seed(0)
    tiles, heads, rows, keys = threads + 1, 2, 256, 64
    q, k, v = (
        torch.randn(tiles, heads, size, dim, generator=generator).to(torch.bfloat16) for size in (rows, keys, keys)
    )
    scale = dim**-0.5
    scores = scale * q.float() @ k.float().mT
    mean, log = flash_attention(q, k, v, None, scale)
    k, v = (a.transpose(1, 2).contiguous().transpose(1, 2) for a in (k, v))  # as the cache holds them
    right = torch.allclose(mean.float(), torch.softmax(scores, -1) @ v.float(), rtol=3e-2, atol=3e-2)
    if not right or not torch.allclose(log, scores.logsumexp(-1), rtol=1e-2, atol=1e-2):
        return False

    def same(rows: int, end: int, hidden: torch.Tensor | None, whole: tuple[torch.Tensor, torch.Tensor]) -> bool:
        n, h, part = (tiles, heads, slice(rows)) if rows % 2 else (1, 1, slice(3, 3 + rows))
        hidden = None if hidden is None else hidden[:n, ..., :end]
        # The logarithm stays fp32: it shows what the rounding of the mean hides.
        got = flash_attention(q[:n, :h, part].clone(), k[:n, :h, :end], v[:n, :h, :end], hidden, scale)
        return all(torch.equal(a, b[:n, :h, part]) for a, b in zip(got, whole, strict=True))

    if not all(same(rows, keys, None, (mean, log)) for rows in (2, 3, 4, 5, 8, 9, 24, 32, 40, 64, 96, 160, 192)):
        return False
    for seen in (5, 16, 33, 48):
        hidden = torch.zeros(tiles, 1, 1, keys)
        hidden[..., seen:] = -torch.inf
        whole = flash_attention(q, k, v, hidden, scale)
        if not all(same(rows, -(-seen // KEY_STEP) * KEY_STEP, hidden, whole) for rows in (2, 3, 40)):
            return False
    return True
