"""The attention that transformers models call: keys and values of a tree of branches live in one pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_utils import AttentionInterface

from frtool.kernels.attention import tree_attention

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator

ATTENTION_NAME = "frtool_tree"


@dataclass(slots=True)
class TreeBatch:
    """Where the new tokens of one forward pass live. It must not have a `.to`: accelerate's hooks would call it.

    `slots` int64 [n]: pool slot of each new token, in branch order. Rows n..T of the pass are padding.
    `plan`: the attention plan of the same tokens, made after they were appended to their branches.
    """

    allocator: PhysicalKVAllocator
    plan: Any
    slots: torch.Tensor


def tree_attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    tree: TreeBatch,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of the `AttentionInterface` contract, for one layer.

    `query` [1, H, T, D], `key`/`value` [1, K, T, D]: the new tokens only, rotary embedding applied, heads not repeated.
    Returns [1, T, H, D]; padding rows are zero. Each query sees its own branch; `attention_mask` plays no part.
    """
    allocator, slots, layer = tree.allocator, tree.slots, module.layer_idx
    real, total = slots.shape[0], query.shape[2]
    allocator.write(layer, slots, key[0].transpose(0, 1)[:real], value[0].transpose(0, 1)[:real])
    out = tree_attention(
        query[0].transpose(0, 1)[:real],
        allocator,
        layer=layer,
        plan=tree.plan,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    if real < total:
        out = torch.cat((out, out.new_zeros(total - real, *out.shape[1:])))
    return out.unsqueeze(0), None


@torch.inference_mode()
def forward_tree(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    batch: TreeBatch,
    logit_rows: torch.Tensor,
) -> torch.Tensor:
    """Run the new tokens of several branches at once and return float32 logits [R, vocab] of the chosen rows.

    `input_ids`, `position_ids` int64 [T] (position = depth on the token's own branch), `logit_rows` int64 [R].
    The keys and values of the real rows are in the pool afterwards. The result is an inference tensor.
    """
    out = model(
        input_ids=input_ids.unsqueeze(0),
        position_ids=position_ids.unsqueeze(0),
        use_cache=False,
        tree=batch,
        logits_to_keep=logit_rows,
    )
    logits: torch.Tensor = out.logits
    return logits[0].float()


AttentionInterface.register(ATTENTION_NAME, tree_attention_forward)
