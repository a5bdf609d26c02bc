"""The network as it is trained: a Llama whose attention follows the trees of `trees.py`.

Parameter names and arithmetic are those of transformers' LlamaForCausalLM, so that `state_dict()` is the checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .batches import BLOCK, Batch
from .trees import WIDTH
from .vocabulary import BOS, EOS, PAD, VOCABULARY_SIZE


@dataclass(frozen=True, slots=True)
class Shape:
    hidden_size: int = 512
    num_hidden_layers: int = 7
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    intermediate_size: int = 1376
    head_dim: int = 64
    max_position_embeddings: int = 256
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    def llama_config(self) -> dict[str, Any]:
        """What `config.json` says, and LlamaConfig takes."""
        values = asdict(self)
        theta = values.pop("rope_theta")
        return {
            **values,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "vocab_size": VOCABULARY_SIZE,
            "tie_word_embeddings": True,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        }


@dataclass(slots=True)
class DeviceBatch:
    """A `Batch` of N tokens as tensors on the training device."""

    tokens: Tensor
    positions: Tensor
    ends: Tensor
    targets: Tensor
    weights: Tensor
    tags: Tensor
    first_key_block: Tensor
    last_query_block: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> DeviceBatch:
        arrays = (*batch.documents, batch.first_key_block, batch.last_query_block)
        return cls(*(torch.from_numpy(array).to(device, copy=True) for array in arrays))


def _ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """BlockMask counts [1, 1, R] and indices [1, 1, R, R] of the block ranges first…last (inclusive) of R rows."""
    rows = first.shape[0]
    indices = first[:, None] + torch.arange(rows, device=first.device, dtype=torch.int32)
    return (last - first + 1)[None, None], indices.clamp(max=rows - 1)[None, None].contiguous()


def tree_mask(batch: DeviceBatch) -> BlockMask | Tensor:
    """Token k is visible to q when k <= q < end[k]: as a block mask on a GPU, dense [N, N] elsewhere."""
    ends = batch.ends
    if not ends.is_cuda:
        rows = torch.arange(ends.shape[0], device=ends.device)
        return (rows[None, :] <= rows[:, None]) & (rows[:, None] < ends[None, :])

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < ends[k])

    blocks = torch.arange(batch.first_key_block.shape[0], device=ends.device, dtype=torch.int32)
    key_counts, key_blocks = _ranges(batch.first_key_block, blocks)
    query_counts, query_blocks = _ranges(blocks, batch.last_query_block)
    return BlockMask(
        seq_lengths=(ends.shape[0], ends.shape[0]),
        kv_num_blocks=key_counts,
        kv_indices=key_blocks,
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=query_counts,
        q_indices=query_blocks,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=visible,
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [heads, N, D] by cos, sin [N, D]."""
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            shape.num_attention_heads,
            shape.num_key_value_heads,
            shape.head_dim,
        )
        self.q_proj = nn.Linear(shape.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor) -> Tensor:
        tokens = x.shape[0]
        q = rotate(self.q_proj(x).view(tokens, self.heads, self.head_dim).transpose(0, 1), cos, sin)[None]
        k = rotate(self.k_proj(x).view(tokens, self.kv_heads, self.head_dim).transpose(0, 1), cos, sin)[None]
        v = self.v_proj(x).view(tokens, self.kv_heads, self.head_dim).transpose(0, 1)[None]
        if isinstance(mask, Tensor):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        attended: Tensor = self.o_proj(y[0].transpose(0, 1).reshape(tokens, -1))
        return attended


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: BlockMask | Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(WIDTH, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Reasoner(nn.Module):
    """Logits [N, WIDTH] of a batch of trees. The embedding is tied, and padded to WIDTH rows while it is trained."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.arange(shape.max_position_embeddings).float()[:, None] * frequencies
        self.register_buffer("angles", torch.cat((angles, angles), dim=-1), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Residual outputs start at zero, so that every layer starts as the identity."""
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02)
        for name, parameter in self.model.layers.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)

    def forward(self, batch: DeviceBatch, mask: BlockMask | Tensor) -> Tensor:
        angles = self.get_buffer("angles")[batch.positions.long()]
        cos, sin = angles.cos(), angles.sin()
        x = self.model.embed_tokens(batch.tokens.long())
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for layer in self.model.layers:
            x = layer(x, cos, sin, mask)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def checkpoint(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a LlamaForCausalLM with tied embeddings, on the CPU."""
        tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in self.state_dict().items()}
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:VOCABULARY_SIZE].clone()
        return tensors


def losses(
    logits: Tensor, targets: Tensor, weights: Tensor, tags: Tensor, reward_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(what is minimised, policy, reward): divergence from the target distributions, in nats.

    Under a weight below 255 the target is a set, and the divergence is -log of the probability that falls into it: it
    says what is allowed, and nothing of what is better.

    The first is a mean over all tokens with the reward's counted `reward_weight` times; the others are means over the
    policy's aimed tokens and the reward's.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    targets = targets.float()
    targets = targets / targets.sum(-1, keepdim=True).clamp(min=1.0)
    divergence = torch.xlogy(targets, targets).sum(-1) - (targets * log_probabilities).sum(-1)
    allowed = torch.where(targets > 0, log_probabilities.exp(), 0.0).sum(-1).clamp(min=1e-6)
    divergence = torch.where(weights < 255, -allowed.log(), divergence)
    weights = weights.float() / 255.0
    rewarded = (tags > 0).float()
    policy = (divergence * weights * (1.0 - rewarded)).sum()
    reward = (divergence * weights * rewarded).sum()
    return (
        (policy + reward_weight * reward) / logits.shape[0],
        policy / (weights * (1.0 - rewarded)).sum().clamp(min=1.0),
        reward / (weights * rewarded).sum().clamp(min=1.0),
    )
