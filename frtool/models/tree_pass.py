"""A forward pass over branches: the attention that a model calls, with the keys and values of a tree in one pool."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from frtool.kernels.attention import tree_attention

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator

ATTENTION_NAME = "frtool_tree"


@dataclass(slots=True)
class TreeBatch:
    """Where the new tokens of one forward pass live. It must not have a `.to`: accelerate's hooks would call it.

    `slots` int64 [n]: pool slot of each new token, in branch order. Rows n..T of the pass are padding.
    `plan`: the attention plan of the same tokens, made after they were appended to their branches.
    `outputs`: None, or memory for the results of a pass that may be captured, by number of heads. Then `slots` is [T],
    -1 in padding rows, and what is launched depends on T alone, not on how many of its rows are real.
    """

    allocator: PhysicalKVAllocator
    plan: Any
    slots: torch.Tensor
    outputs: dict[int, torch.Tensor] | None = None
    common: dict[Any, Any] = field(default_factory=dict)
    """What a layer makes and the next ones can use, by names of the layers' own."""


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
    allocator, slots, plan, layer = tree.allocator, tree.slots, tree.plan, module.layer_idx
    queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    fixed = tree.outputs is not None and plan.backend == "triton"
    real = len(queries) if fixed else plan.num_queries
    allocator.write(layer, slots[:real], keys[:real], values[:real])
    out = tree_attention(
        queries,
        allocator,
        layer=layer,
        plan=plan,
        scale=scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
        out=None if tree.outputs is None else _output(tree.outputs, queries),
    )
    return out.unsqueeze(0), None


def _output(outputs: dict[int, torch.Tensor], queries: torch.Tensor) -> torch.Tensor:
    """Padding rows stay zero. The next layer may overwrite it: a layer has used its attention by then."""
    heads = queries.shape[1]
    if heads not in outputs:
        outputs[heads] = torch.zeros_like(queries, memory_format=torch.contiguous_format)
    return outputs[heads]


@torch.inference_mode()
def forward_tree(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    batch: TreeBatch,
    logit_rows: torch.Tensor | int,
) -> torch.Tensor:
    """Run the new tokens of several branches at once and return float32 logits [R, vocab] of the chosen rows.

    `input_ids`, `position_ids` int64 [T] (position = depth on the token's own branch), `logit_rows` int64 [R]; 0: all.
    The keys and values of the real rows are in the pool afterwards. The result is an inference tensor.
    """
    return model_logits(model, input_ids, position_ids, batch, logit_rows).float()


def model_logits(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    batch: TreeBatch,
    logit_rows: torch.Tensor | int = 0,
) -> torch.Tensor:
    """`forward_tree` in the model's own number format, for callers in inference mode. `logit_rows` 0: all rows."""
    direct = getattr(model, "tree_logits", None)  # of packed layers
    packed: torch.Tensor | None = direct and direct(model, input_ids, position_ids, batch, logit_rows)
    if packed is not None:
        return packed
    out = model(
        input_ids=input_ids.unsqueeze(0),
        position_ids=position_ids.unsqueeze(0),
        use_cache=False,
        tree=batch,
        logits_to_keep=logit_rows,
    )
    logits: torch.Tensor = out.logits
    return logits[0]
