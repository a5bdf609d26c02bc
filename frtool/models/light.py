"""The embedded model without transformers: its own few classes, for passes over trees on a CPU.

Importing transformers takes longer than solving a puzzle. What is computed is, to the bit, what the packed model of
transformers computes, and the tests hold it to that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from frtool.errors import ModelError

from .checkpoint import read_config, require_tokenizer, summarize_weights
from .half_linear import linear_for
from .light_tokenizer import LightTokenizer
from .packed_layers import Linear, PackedDecoderLayer, PackedNorm, tree_logits
from .support import position_limit
from .text import one_line

if TYPE_CHECKING:
    from .load import LoadedModel
    from .resolve import ModelSource, Progress


class LlamaForCausalLM(nn.Module):
    """A Llama decoder with tied embeddings, for passes over a tree only.

    It bears the name of the architecture, which traces record.
    """

    def __init__(self, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """Takes the weights out of `weights`, named as in a transformers checkpoint. Raises KeyError for a missing one,
        ValueError for a wrong shape."""
        super().__init__()
        text = SimpleNamespace(**config)
        text.get_text_config = lambda decoder=True: text
        self.config = text
        linear = linear_for(weight for weight in weights.values() if weight.dim() == 2)
        table = weights.pop("model.embed_tokens.weight")
        self.lm_head = linear(_linear(table.clone(), (text.vocab_size, text.hidden_size)))
        self.model = _Decoder(text, table, weights, linear)
        self.tree_logits = tree_logits

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens


class _Decoder(nn.Module):
    """What `tree_logits` asks of a model below its output matrix."""

    def __init__(self, text: Any, table: torch.Tensor, weights: dict[str, torch.Tensor], packed: Linear) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size, _weight=table, _freeze=True)
        self.layers = nn.ModuleList([_layer(text, weights, index, packed) for index in range(text.num_hidden_layers)])
        self.norm = PackedNorm(_Norm(weights.pop("model.norm.weight"), text.rms_norm_eps))
        steps = torch.arange(0, text.head_dim, 2, dtype=torch.float) / text.head_dim
        frequencies = 1.0 / text.rope_parameters["rope_theta"] ** steps
        angles = torch.arange(text.max_position_embeddings)[:, None].float() * frequencies
        angles = torch.cat((angles, angles), -1)
        self._cos, self._sin = angles.cos().to(table.dtype), angles.sin().to(table.dtype)

    def rotary_emb(self, _: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin `[1, T, D]` of int64 `[1, T]`."""
        return torch.embedding(self._cos, position_ids), torch.embedding(self._sin, position_ids)


def _layer(text: Any, weights: dict[str, torch.Tensor], index: int, packed: Linear) -> PackedDecoderLayer:
    name = f"model.layers.{index}"
    hidden, inner, dim = text.hidden_size, text.intermediate_size, text.head_dim
    wide, narrow = text.num_attention_heads * dim, text.num_key_value_heads * dim

    def linear(part: str, *shape: int) -> nn.Linear:
        return _linear(weights.pop(f"{name}.{part}.weight"), shape)

    def norm(part: str) -> _Norm:
        return _Norm(weights.pop(f"{name}.{part}.weight"), text.rms_norm_eps)

    block = SimpleNamespace(
        q_proj=linear("self_attn.q_proj", wide, hidden),
        k_proj=linear("self_attn.k_proj", narrow, hidden),
        v_proj=linear("self_attn.v_proj", narrow, hidden),
        o_proj=linear("self_attn.o_proj", hidden, wide),
        layer_idx=index,
        head_dim=dim,
        scaling=dim**-0.5,
    )
    mlp = SimpleNamespace(
        gate_proj=linear("mlp.gate_proj", inner, hidden),
        up_proj=linear("mlp.up_proj", inner, hidden),
        down_proj=linear("mlp.down_proj", hidden, inner),
        act_fn=functional.silu,
    )
    layer = SimpleNamespace(
        self_attn=block,
        mlp=mlp,
        input_layernorm=norm("input_layernorm"),
        post_attention_layernorm=norm("post_attention_layernorm"),
    )
    return PackedDecoderLayer(layer, None, packed)


class _Norm(nn.Module):
    """What a root mean square norm is made of, by the names of transformers."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.variance_epsilon = epsilon


def _linear(weight: torch.Tensor, shape: tuple[int, ...]) -> nn.Linear:
    if tuple(weight.shape) != shape:
        raise ValueError(f"a weight is {list(weight.shape)}, not {list(shape)}")
    linear = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


@torch.inference_mode()
def load_light(source: ModelSource, dtype: torch.dtype, progress: Progress) -> LoadedModel:
    """The embedded model in `dtype` on the CPU. Raises ModelError for files that are missing or do not fit together."""
    from safetensors.torch import load_file

    from .load import REWARD_TOKENS, LoadedModel, RewardTokens

    directory = source.path
    config = read_config(directory)
    require_tokenizer(directory)
    summary = summarize_weights(directory)
    progress(f"loading {source.name} ({summary.stored_bytes / 1e6:,.0f} MB)")
    try:
        tokenizer = LightTokenizer(directory)
        weights: dict[str, torch.Tensor] = {}
        for file in summary.files:
            weights.update((name, weight.to(dtype)) for name, weight in load_file(file).items())
        model = LlamaForCausalLM(config, weights).eval()
    except (KeyError, ValueError, OSError) as error:
        raise ModelError(
            f"the files of {source.name} do not fit together: {one_line(error)}", hint="reinstall frtool"
        ) from None
    text = model.config
    limit, note = position_limit(text)
    special = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=source.name,
        source=str(directory),
        dtype=dtype,
        device=torch.device("cpu"),
        parameters=summary.parameters,
        vocab_size=text.vocab_size,
        max_positions=limit,
        position_note=note,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        eos_ids=frozenset([text.eos_token_id]),
        reward_tokens=RewardTokens(*(special[name] for name in REWARD_TOKENS)),
        chat_template=False,
        is_embedded=True,
    )
