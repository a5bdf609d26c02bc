"""Storing new keys and values in the pool: one launch a layer for both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _write_kernel(
    k, v, k_pool, v_pool, slots, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token. Pools `[slots, HEADS, D]` contiguous; a token whose slot is negative is padding."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        i = tl.arange(0, BLOCK)
        inside = i < HEADS * D
        place = slot * (HEADS * D) + i
        head, dim = i // D, i % D
        keys = tl.load(k + token * k_stride_t + head * k_stride_h + dim, mask=inside)
        values = tl.load(v + token * v_stride_t + head * v_stride_h + dim, mask=inside)
        tl.store(k_pool + place, keys.to(k_pool.dtype.element_ty), mask=inside)
        tl.store(v_pool + place, values.to(v_pool.dtype.element_ty), mask=inside)


def write_tokens(
    k: torch.Tensor, v: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor
) -> None:
    """k, v `[T, K, D]` of any strides into k_pool, v_pool `[slots, K, D]` contiguous at int64 `slots` `[T]`, cast to
    the pool's dtype. Tokens with a negative slot are left out."""
    tokens, heads, head_dim = k.shape
    if not tokens:
        return
    k = k if k.stride(2) == 1 else k.contiguous()
    v = v if v.stride(2) == 1 else v.contiguous()
    block = 1 << max(heads * head_dim - 1, 1).bit_length()
    _write_kernel[(tokens,)](
        k, v, k_pool, v_pool, slots, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        HEADS=heads, D=head_dim, BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
