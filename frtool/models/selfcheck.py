"""A loaded model against itself: one pass, a pass in pieces over a fork, and transformers' own attention must agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import plan_attention

from .hook import ATTENTION_NAME, TreeBatch, forward_tree
from .support import refuse
from .text import one_line

if TYPE_CHECKING:
    from .load import LoadedModel

TOKENS, SPLIT = 16, 7
# Relative error of the logits of the typical row. On SmolLM2-135M rounding makes 4e-6, 3e-3 and 3e-2 in these formats;
# positions of the batch instead of the branch make 0.3, a scale 20 % off 0.26.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 0.15}


def check_model(loaded: LoadedModel) -> None:
    """Raise ModelError when the pool changes what this model computes. Costs four passes over 16 tokens."""
    kind = one_line(loaded.model.config.model_type, 40)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(loaded.vocab_size, len(loaded.tokenizer)), (TOKENS,), generator=generator)
    tokens = tokens.to(loaded.device)
    try:
        stock = _stock(loaded, tokens)
        whole, pieces = _through_pool(loaded, tokens)
    except Exception as error:
        # The code of any model may fail in any way here.
        raise refuse(loaded.name, f"{kind} failed a trial run: {one_line(error)}") from error
    worst = max(_relative_error(whole, stock), _relative_error(pieces, stock))
    if not worst <= TOLERANCE[loaded.dtype]:
        raise refuse(
            loaded.name,
            f"{kind} computes something else over a tree of branches (relative error {worst:.2g})",
        )


def _through_pool(loaded: LoadedModel, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the last rows: from one pass, and from a fork behind a sibling that goes another way."""
    pool = PhysicalKVAllocator(
        32,
        4,
        loaded.num_kv_heads,
        loaded.head_dim,
        device=loaded.device,
        num_layers=loaded.num_layers,
        dtype=loaded.dtype,
    )
    whole = pool.alloc_branch(TOKENS).branch_id
    first = _pass(loaded, pool, [whole], tokens, [TOKENS])[SPLIT:]
    stem = pool.alloc_branch(SPLIT).branch_id
    _pass(loaded, pool, [stem], tokens[:SPLIT], [SPLIT])
    sibling, branch = pool.fork(stem).branch_id, pool.fork(stem).branch_id
    rest = TOKENS - SPLIT
    pool.append_many([sibling, branch], [3, rest])
    second = _pass(loaded, pool, [sibling, branch], torch.cat((tokens[-3:], tokens[SPLIT:])), [3, rest])[3:]
    return first, second


def _pass(
    loaded: LoadedModel, pool: PhysicalKVAllocator, branches: list[int], tokens: torch.Tensor, counts: list[int]
) -> torch.Tensor:
    positions: list[int] = []
    slots: list[int] = []
    for branch, count in zip(branches, counts, strict=True):
        stop = pool.length(branch)
        positions += range(stop - count, stop)
        slots += pool.slots(branch, stop - count, stop).tolist()
    batch = TreeBatch(pool, plan_attention(pool, branches, counts), torch.tensor(slots, device=loaded.device))
    rows = torch.arange(len(tokens), device=loaded.device)
    return forward_tree(loaded.model, tokens, torch.tensor(positions, device=loaded.device), batch, rows)


@torch.inference_mode()
def _stock(loaded: LoadedModel, tokens: torch.Tensor) -> torch.Tensor:
    loaded.model.set_attn_implementation("eager")
    try:
        logits: torch.Tensor = loaded.model(input_ids=tokens.unsqueeze(0), use_cache=False).logits
        return logits[0, SPLIT:].float()
    finally:
        loaded.model.set_attn_implementation(ATTENTION_NAME)


def _relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    scale = (truth - truth.mean(-1, keepdim=True)).norm(dim=-1).clamp_min(1e-6)
    return float(((found - truth).norm(dim=-1) / scale).median())
