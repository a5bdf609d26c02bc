"""What tree attention is compared with. Every baseline gets the same K, V and queries, in the layout that it wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from frtool.bench.attention_cases import TreeCase
from frtool.bench.attention_timing import Call
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.plan import TreePlan


class Unavailable(Exception):
    """The baseline cannot run here, or not on this case; the message says why."""


Build = Callable[[TreeCase, PhysicalKVAllocator, list[int], torch.Tensor], list[Call]]
"""(case, pool, branches, q [layers, B, Hq, D]) -> one call a layer, each returning [B, Hq, D]."""


def linear_plan(tree: TreePlan) -> TreePlan:
    """The same branches as if no block were shared: one node a branch."""
    count = len(tree.branch_ids)
    every = np.arange(count, dtype=np.int32)
    blocks = -(-tree.lengths // tree.block_size)
    return replace(
        tree, node_start=np.zeros_like(every), node_stop=blocks.astype(np.int32), node_lo=every, node_hi=every + 1,
        order=every,
    )  # fmt: skip


def _paths(pool: PhysicalKVAllocator, branches: list[int]) -> torch.Tensor:
    """int64 `[B, longest]` slots of every branch; -1 after its end."""
    longest = int(pool.lengths(branches).max())
    rows = np.full((len(branches), longest), -1, np.int64)
    for row, branch in zip(rows, branches, strict=True):
        slots = pool.slots(branch)
        row[: len(slots)] = slots
    return torch.from_numpy(rows).to(pool.device)


def _gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """K or V of one layer at `slots` `[..., n]` -> `[..., Hk, n, D]`."""
    return cache.flatten(0, 1)[slots.clamp(min=0)].movedim(-2, -3).contiguous()


def sdpa_copied(case: TreeCase, pool: PhysicalKVAllocator, branches: list[int], q: torch.Tensor) -> list[Call]:
    slots = _paths(pool, branches)
    hidden = slots < 0
    mask = (~hidden)[:, None, None, :] if bool(hidden.any()) else None
    per_layer = 2 * slots.numel() * pool.num_kv_heads * pool.head_dim * pool.k_cache.element_size()
    layers = 1 if per_layer > 256 << 20 else len(q)  # so large a copy is cold by itself
    _require_memory(pool.device, layers * per_layer)
    calls: list[Call] = []
    for layer in range(layers):
        k, v = (_gather(c[layer], slots) for c in (pool.k_cache, pool.v_cache))
        x = q[layer].unsqueeze(2)
        calls.append(partial(_sdpa, x, k, v, mask))
    return calls


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).squeeze(2)


def _require_memory(device: torch.device, needed: int) -> None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if needed > 0.8 * free:
            raise Unavailable(f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")


def hydragen(case: TreeCase, pool: PhysicalKVAllocator, branches: list[int], q: torch.Tensor) -> list[Call]:
    """Hydragen (Juravsky et al., 2024) in torch: the prompt for all queries at once, the tails batched, a merge."""
    if case.parents != (-1, *([0] * len(branches))):
        raise Unavailable("hydragen takes one shared prompt with branches below it")
    if len(set(case.tokens[1:])) > 1:
        raise Unavailable("hydragen takes tails of one length")
    prefix, batch, heads = case.tokens[0], len(branches), pool.num_kv_heads
    slots = _paths(pool, branches)
    scale = pool.head_dim**-0.5
    calls: list[Call] = []
    for layer in range(len(q)):
        k0, v0 = (_gather(c[layer], slots[0, :prefix]) for c in (pool.k_cache, pool.v_cache))  # [Hk, P, D]
        k1, v1 = (_gather(c[layer], slots[:, prefix:]) for c in (pool.k_cache, pool.v_cache))  # [B, Hk, S, D]
        x = q[layer].view(batch, heads, -1, pool.head_dim)  # [B, Hk, g, D]
        rows = x.transpose(0, 1).reshape(heads, -1, pool.head_dim)  # [Hk, B * g, D]

        def call(k0=k0, v0=v0, k1=k1, v1=v1, x=x, rows=rows) -> torch.Tensor:  # type: ignore[no-untyped-def]
            o0, l0 = _partial(rows, k0, v0, scale)
            o1, l1 = _partial(x, k1, v1, scale)
            o0 = o0.view(heads, batch, -1, o0.shape[-1]).transpose(0, 1)
            l0 = l0.view(heads, batch, -1).transpose(0, 1)
            weight = torch.sigmoid(l0 - l1)[..., None].to(o0.dtype)
            return (o0 * weight + o1 * (1 - weight)).reshape(batch, -1, o0.shape[-1])

        calls.append(call)
    return calls


def _partial(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp, of `[..., n, D]` queries over `[..., m, D]` keys."""
    scores = (q @ k.transpose(-1, -2)).float() * scale
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse


def flex(case: TreeCase, pool: PhysicalKVAllocator, branches: list[int], q: torch.Tensor) -> list[Call]:
    """torch's FlexAttention over the tree's unique tokens, with a block mask from node to branch."""
    if pool.device.type != "cuda":
        raise Unavailable("flex needs a CUDA device")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    paths = _paths(pool, branches)
    unique, where = torch.unique(paths[paths >= 0], return_inverse=True)
    visible = torch.zeros(len(branches), len(unique), dtype=torch.bool, device=pool.device)
    visible[(paths >= 0).nonzero()[:, 0], where] = True
    mask = create_block_mask(
        lambda b, h, i, j: visible[i, j], None, None, len(branches), len(unique), device=str(pool.device)
    )
    attend = torch.compile(flex_attention, dynamic=False)
    calls: list[Call] = []
    for layer in range(len(q)):
        k, v = (_gather(c[layer], unique)[None] for c in (pool.k_cache, pool.v_cache))
        x = q[layer].transpose(0, 1)[None].contiguous()
        calls.append(partial(_flex, attend, x, k, v, mask))
    return calls


def _flex(attend: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
    # The kernel for short queries holds all rows of a kv head at once: from 128 rows on it finds no tile that fits.
    rows = q.shape[2] * q.shape[1] // k.shape[1]
    options = {"FORCE_USE_FLEX_ATTENTION": rows >= 128}
    result: torch.Tensor = attend(q, k, v, block_mask=mask, enable_gqa=True, kernel_options=options)
    return result[0].transpose(0, 1)


def flashinfer(case: TreeCase, pool: PhysicalKVAllocator, branches: list[int], q: torch.Tensor) -> list[Call]:
    """FlashInfer's paged decode on the same pages; it does not know that they are shared."""
    wrapper = _flashinfer_decode(pool, branches, q)
    return [
        lambda layer=layer: wrapper.run(q[layer], (pool.k_cache[layer], pool.v_cache[layer]))  # type: ignore[misc]
        for layer in range(len(q))
    ]


def _flashinfer_decode(pool: PhysicalKVAllocator, branches: list[int], q: torch.Tensor) -> Any:
    if pool.device.type != "cuda":
        raise Unavailable("flashinfer needs a CUDA device")
    import flashinfer as library

    lengths = pool.lengths(branches)
    blocks = -(-lengths // pool.block_size)
    indptr = torch.from_numpy(np.concatenate([[0], np.cumsum(blocks)]).astype(np.int32))
    indices = torch.from_numpy(np.concatenate([pool.block_table(b) for b in branches]).astype(np.int32))
    last = torch.from_numpy(((lengths - 1) % pool.block_size + 1).astype(np.int32))
    workspace = torch.zeros(1 << 30, dtype=torch.uint8, device=pool.device)
    device = pool.device
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
        workspace, "NHD", use_cuda_graph=True, use_tensor_cores=q.shape[2] // pool.num_kv_heads >= 4,
        paged_kv_indptr_buffer=indptr.to(device), paged_kv_indices_buffer=indices.to(device),
        paged_kv_last_page_len_buffer=last.to(device),
    )  # fmt: skip
    wrapper.plan(
        indptr, indices.to(device), last, q.shape[2], pool.num_kv_heads, pool.head_dim, pool.block_size,
        q_data_type=q.dtype, kv_data_type=pool.dtype,
    )  # fmt: skip
    return wrapper


BASELINES: dict[str, Build] = {"sdpa": sdpa_copied, "flex": flex, "hydragen": hydragen, "flashinfer": flashinfer}


def missing(name: str) -> str | None:
    """Why a baseline cannot be imported here, or None."""
    if name == "flashinfer" and find_spec("flashinfer") is None:
        return "flashinfer-python is not installed"
    return None
