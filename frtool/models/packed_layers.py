"""Decoder layers with fewer and larger operations, for CPUs, where dispatch costs as much as arithmetic.

Query, key and value are one product, gate and up another; the residual is added by the product before it. What a
layer computes is what transformers computes, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .packed import PackedLinear
from .tree_pass import tree_attention_forward


class PackedDecoderLayer(nn.Module):
    """A pre-norm layer with rotary embedding over whole heads and a gated MLP: Llama, Mistral, Qwen2, Qwen3."""

    def __init__(self, layer: Any, attention: Any) -> None:
        """`attention`: the model's own eager attention, for configurations that ask for it. None: passes over trees
        are all that it runs."""
        super().__init__()
        block, mlp = layer.self_attn, layer.mlp
        self.qkv = PackedLinear(block.q_proj, block.k_proj, block.v_proj)
        self.out = PackedLinear(block.o_proj)
        self.gate_up = PackedLinear(mlp.gate_proj, mlp.up_proj)
        self.down = PackedLinear(mlp.down_proj)
        self.activation = mlp.act_fn
        self.norms = nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm])
        self.head_norms = nn.ModuleList([block.q_norm, block.k_norm]) if hasattr(block, "q_norm") else None
        self.window = _window(block)
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(block, name)
        self.self_attn = block
        """Attention functions ask it for its index, its scale and its groups."""
        self._eager = attention

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states `[batch, T, hidden]`, cos and sin `[batch, T, D]`. Returns the like of hidden_states."""
        assert position_embeddings is not None
        block = self.self_attn
        batch, length, _ = hidden_states.shape
        dim = block.head_dim
        heads, kv_heads = (width // dim for width in self.qkv.widths[:2])
        qkv = self.qkv(_norm(self.norms[0], hidden_states)).view(batch, length, heads + 2 * kv_heads, dim)
        value = qkv[:, :, heads + kv_heads :].transpose(1, 2)
        rotated = _rotate(self._head_norm(qkv, heads, kv_heads), *position_embeddings).transpose(1, 2)
        query, key = rotated[:, :heads], rotated[:, heads:]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, block.layer_idx)
        mixed, _ = self._attention()(
            block,
            query,
            key,
            value,
            attention_mask,
            dropout=0.0,
            scaling=block.scaling,
            position_ids=position_ids,
            use_cache=use_cache,
            **self.window,
            **kwargs,
        )
        hidden_states = self.out.add_to(hidden_states, mixed.reshape(batch, length, -1))
        gate, up = self.gate_up(_norm(self.norms[1], hidden_states)).chunk(2, -1)
        return self.down.add_to(hidden_states, self.activation(gate).mul_(up))

    def _attention(self) -> Callable[..., tuple[torch.Tensor, Any]]:
        """What a transformers configuration names. Without one, the tree's."""
        if self._eager is None:
            return tree_attention_forward
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend: Callable[..., tuple[torch.Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.self_attn.config._attn_implementation, self._eager
        )
        return attend

    def _head_norm(self, qkv: torch.Tensor, heads: int, kv_heads: int) -> torch.Tensor:
        """Queries and keys `[batch, T, heads + kv_heads, D]`."""
        if self.head_norms is None:
            return qkv[:, :, : heads + kv_heads]
        query, key = qkv[:, :, :heads], qkv[:, :, heads : heads + kv_heads]
        return torch.cat((_norm(self.head_norms[0], query), _norm(self.head_norms[1], key)), 2)


def pack_layers(model: Any) -> int:
    """Replace the decoder layers of a transformers model whose computation is known. Returns the products packed."""
    layers: Any = getattr(getattr(model, "model", None), "layers", ())
    known = _known_layers()
    count = 0
    for index, layer in enumerate(layers):
        attention = known.get(type(layer))
        if attention is not None and _is_whole(layer):
            layers[index] = PackedDecoderLayer(layer, attention)
            count += 4
    return count


def _known_layers() -> dict[type, Any]:
    """Decoder layer classes of the modules that are loaded anyway, with their eager attention."""
    import sys

    known = {}
    for kind, name in (("llama", "Llama"), ("mistral", "Mistral"), ("qwen2", "Qwen2"), ("qwen3", "Qwen3")):
        module = sys.modules.get(f"transformers.models.{kind}.modeling_{kind}")
        if module is not None:
            known[getattr(module, f"{name}DecoderLayer")] = module.eager_attention_forward
    return known


def _is_whole(layer: Any) -> bool:
    """Whether the projections are plain linear layers, not quantized or adapted ones."""
    block, mlp = layer.self_attn, layer.mlp
    parts = (block.q_proj, block.k_proj, block.v_proj, block.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return all(type(part) is nn.Linear for part in parts)


def _window(block: Any) -> dict[str, int | None]:
    """The sliding window as the model's own attention hands it on."""
    if hasattr(block, "sliding_window"):
        return {"sliding_window": block.sliding_window}
    if type(block).__name__ == "MistralAttention":
        return {"sliding_window": getattr(block.config, "sliding_window", None)}
    return {}


def _norm(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` `[batch, T, heads, D]` turned by its position: halves (a, b) to (a cos - b sin, b cos + a sin)."""
    half = x.shape[-1] // 2
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
