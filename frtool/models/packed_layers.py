"""Decoder layers with fewer and larger operations, for CPUs, where dispatch costs as much as arithmetic.

Query, key and value are one product; activation, gating and the residual are part of the products before them. What a
layer computes is what transformers computes, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from frtool.kernels.attention import tree_attention
from frtool.kernels.grouped import GroupedPlan, attend_grouped

from .apart import ApartLinear
from .packed import SILU, PackedLinear
from .tree_pass import TreeBatch, tree_attention_forward

Linear = type[PackedLinear] | type[ApartLinear]
_PLAIN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models that are an embedding, a rotary embedding, layers, a norm and an output matrix, and nothing else."""


class PackedDecoderLayer(nn.Module):
    """A pre-norm layer with rotary embedding over whole heads and a gated MLP: Llama, Mistral, Qwen2, Qwen3."""

    def __init__(self, layer: Any, attention: Any, linear: Linear = PackedLinear) -> None:
        """`attention`: the model's own eager attention, for configurations that ask for it. None: passes over trees
        are all that it runs. `linear`: how its products are packed."""
        super().__init__()
        block, mlp = layer.self_attn, layer.mlp
        dim, widths = block.head_dim, [layer.out_features for layer in (block.q_proj, block.k_proj, block.v_proj)]
        self._heads, self._kv_heads = (width // dim for width in widths[:2])
        pairs = torch.arange(dim).view(2, -1).T.flatten()
        turned = (torch.arange(sum(widths[:2])).view(-1, dim)[:, pairs]).flatten()
        # What turns together stands together: the two are one complex number.
        order = torch.cat((turned, torch.arange(sum(widths[:2]), sum(widths))))
        self.qkv = linear(block.q_proj, block.k_proj, block.v_proj, order=order)
        self.out = linear(block.o_proj)
        is_silu = mlp.act_fn is functional.silu or type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")
        self.gate = linear(mlp.gate_proj, then=SILU) if is_silu else linear(mlp.gate_proj)
        self.activation = None if is_silu else mlp.act_fn
        self.up = linear(mlp.up_proj)
        self.down = linear(mlp.down_proj)
        self.norms = nn.ModuleList([layer.input_layernorm, layer.post_attention_layernorm])
        self._before, self._between = (_Norm(norm) for norm in self.norms)
        self.head_norms = nn.ModuleList([block.q_norm, block.k_norm]) if hasattr(block, "q_norm") else None
        self._of_heads = None if self.head_norms is None else tuple(_Norm(norm, pairs) for norm in self.head_norms)
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
        attend = self._attention()
        if attend is tree_attention_forward:
            return self.over_tree(hidden_states, kwargs["tree"], *position_embeddings)
        block = self.self_attn
        batch, length, _ = hidden_states.shape
        heads = self._heads
        qkv = self.qkv(self._before(hidden_states)).view(batch, length, -1, block.head_dim)
        both, value = self._split(qkv)
        rotated = _rotate(both, _turns(*position_embeddings)).to(qkv.dtype).transpose(1, 2)
        query, key, value = rotated[:, :heads], rotated[:, heads:], value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, block.layer_idx)
        mixed, _ = attend(
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
        return self._mlp(self.out.add_to(hidden_states, mixed.reshape(batch, length, -1)))

    def over_tree(self, x: torch.Tensor, tree: TreeBatch, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """`forward` in a pass over branches."""
        return self._mlp(self.out.add_to(x, self._attend(x, tree, cos, sin)))

    def _attend(self, x: torch.Tensor, tree: TreeBatch, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """`[1, T, heads * D]`: the attention of a pass over branches, zero in padding rows. No more operations than it
        takes: with few branches each costs more than what it computes."""
        block, plan, allocator = self.self_attn, tree.plan, tree.allocator
        rows, real = x.shape[1], plan.num_queries
        heads, kv_heads, dim = self._heads, self._kv_heads, block.head_dim
        turns = tree.common.get(id(cos))
        if turns is None:  # it keeps cos, so that its id stays its own
            turns = tree.common[id(cos)] = (_turns(cos[0, :real], sin[0, :real]), cos)
        qkv = self.qkv.forward(self._before(x)).view(rows, heads + 2 * kv_heads, dim)
        if real < rows:
            qkv = qkv[:real]
        both, value = self._split(qkv)
        query, key = _rotate(both, turns[0]).split_with_sizes((heads, kv_heads), 1)
        slots = tree.slots if len(tree.slots) == real else tree.slots[:real]
        allocator.write(block.layer_idx, slots, key, value)
        # The pool has taken keys of this shape; what else `tree_attention` checks is fixed with the model.
        attend = attend_grouped if isinstance(plan, GroupedPlan) else tree_attention
        window = self.window.get("sliding_window")
        mixed = attend(query, allocator, plan=plan, layer=block.layer_idx, scale=block.scaling, window=window)
        mixed = mixed.to(x.dtype)
        if real < rows:
            padded = tree.common.get(heads)
            if padded is None:
                padded = tree.common[heads] = x.new_zeros(rows, heads, dim)
            padded[:real].copy_(mixed)
            mixed = padded
        return mixed.view(1, rows, heads * dim)

    def _mlp(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, T, hidden]`, the residual added."""
        normed = self._between(x)
        gate = self.gate.forward(normed)
        if self.activation is not None:
            gate = self.activation(gate)
        return self.down.add_to(x, self.up.times(gate, normed))

    def _attention(self) -> Callable[..., tuple[torch.Tensor, Any]]:
        """What a transformers configuration names. Without one, the tree's."""
        if self._eager is None:
            return tree_attention_forward
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend: Callable[..., tuple[torch.Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.self_attn.config._attn_implementation, self._eager
        )
        return attend

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys `[..., heads + kv_heads, D]`, normed where the model does, and values."""
        heads, kv_heads = self._heads, self._kv_heads
        if self._of_heads is None:
            both, value = qkv.split_with_sizes((heads + kv_heads, kv_heads), -2)
            return both, value
        query, key, value = qkv.split_with_sizes((heads, kv_heads, kv_heads), -2)
        norm_query, norm_key = self._of_heads
        return torch.cat((norm_query(query), norm_key(key)), -2), value


class PackedNorm(nn.Module):
    """A root mean square norm in the place of a model's own."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon
        self._fast = _Norm(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._fast(x)


def pack_layers(model: Any, linear: Linear = PackedLinear) -> int:
    """Replace the decoder layers of a transformers model whose computation is known, and the norm after them. Returns
    the products packed. Layers that do not fit `linear` stay as they are."""
    layers: Any = getattr(getattr(model, "model", None), "layers", ())
    known = _known_layers()
    count = 0
    for index, layer in enumerate(layers):
        attention = known.get(type(layer))
        if attention is not None and _is_whole(layer) and linear.fits(*_products(layer)):
            layers[index] = PackedDecoderLayer(layer, attention, linear)
            count += 5
    norm = getattr(getattr(model, "model", None), "norm", None)
    if count and type(norm) is type(layers[0].norms[0]):
        model.model.norm = PackedNorm(norm)
        if count == 5 * len(layers) and type(model).__name__ in _PLAIN:
            model.tree_logits = tree_logits
    return count


def tree_logits(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, tree: TreeBatch, logit_rows: torch.Tensor | int
) -> torch.Tensor | None:
    """`tree_pass.model_logits` without what transformers does around the layers: masks, caches, recorded outputs. None
    where the model's configuration names another attention."""
    decoder = model.model
    if decoder.layers[0]._attention() is not tree_attention_forward:
        return None
    hidden = decoder.embed_tokens(input_ids.unsqueeze(0))
    cos, sin = decoder.rotary_emb(hidden, position_ids.unsqueeze(0))
    for layer in decoder.layers:
        hidden = layer.over_tree(hidden, tree, cos, sin)
    if isinstance(logit_rows, torch.Tensor):
        hidden = hidden[:, logit_rows]
    logits: torch.Tensor = model.lm_head(decoder.norm(hidden))[0]
    return logits


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
    return all(type(part) is nn.Linear for part in _products(layer))


def _products(layer: Any) -> tuple[Any, ...]:
    block, mlp = layer.self_attn, layer.mlp
    return block.q_proj, block.k_proj, block.v_proj, block.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj


def _window(block: Any) -> dict[str, int | None]:
    """The sliding window as the model's own attention hands it on."""
    if hasattr(block, "sliding_window"):
        return {"sliding_window": block.sliding_window}
    if type(block).__name__ == "MistralAttention":
        return {"sliding_window": getattr(block.config, "sliding_window", None)}
    return {}


class _Norm:
    """Root mean square norm in fp32, rounded once, in fewer operations than torch makes of its own."""

    def __init__(self, norm: Any, order: torch.Tensor | None = None) -> None:
        self._weight = norm.weight.detach().float()
        if order is not None:
            self._weight = self._weight[order]
        self._epsilon = torch.tensor(norm.variance_epsilon)
        self._share = 1.0 / norm.weight.numel()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.float()
        length = torch.linalg.vector_norm(exact, 2, -1, True)
        inverse = torch.addcmul(self._epsilon, length, length, value=self._share).rsqrt_()
        if exact is x:
            return (x * inverse).mul_(self._weight)
        return exact.mul_(inverse).mul_(self._weight).to(x.dtype)


def _turns(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """cos and sin `[..., D]`, both halves alike, as complex numbers `[..., 1, D / 2]`."""
    half = cos.shape[-1] // 2
    return torch.complex(cos[..., :half].float(), sin[..., :half].float()).unsqueeze(-2)


def _rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """`x` `[..., heads, D]` turned by its position, in fp32, where it is fp32 in place: neighbours (a, b) to
    (a cos - b sin, b cos + a sin)."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs.mul_(turns)).flatten(-2)
