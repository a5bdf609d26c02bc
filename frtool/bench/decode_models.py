"""Models to measure: real shapes with random weights, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch

from frtool.models.load import LoadedModel

_LLAMA_3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
}
"""Llama configurations as their makers publish them, without the scaling of the rotary embedding."""


class Numerals:
    """Stands for a tokenizer of bytes: the text of a token is its number."""

    all_special_ids: tuple[int, ...] = ()

    def __init__(self) -> None:
        from tokenizers.decoders import ByteLevel

        self.decoder = ByteLevel()

    @property
    def backend_tokenizer(self) -> Numerals:
        return self

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids)) + " "


def parameter_count(shape: str) -> int:
    """Weights of a model of this shape. Raises KeyError."""
    config = SHAPES[shape]
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    layer = hidden * width * 2 * (heads + kv_heads) + 3 * hidden * inner + 2 * hidden
    embeddings = vocab * hidden * (1 if config["tie_word_embeddings"] else 2)
    return int(config["num_hidden_layers"] * layer + embeddings + hidden)


def random_model(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> LoadedModel:
    """A Llama of this shape with random weights, made on `device`. It has no end token. Raises KeyError."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from frtool.models.hook import ATTENTION_NAME

    settings = dict(SHAPES[shape])
    theta = settings.pop("rope_theta")
    config = LlamaConfig(**settings, rope_parameters={"rope_type": "default", "rope_theta": theta})
    config.eos_token_id = config.bos_token_id = None
    torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, attn_implementation=ATTENTION_NAME, dtype=dtype)
    model.eval().requires_grad_(False)
    return LoadedModel(
        model=model,
        tokenizer=Numerals(),
        name=shape,
        source="random weights",
        dtype=dtype,
        device=device,
        parameters=sum(weight.numel() for weight in model.parameters()),
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
        position_note=None,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        eos_ids=frozenset(),
        reward_tokens=None,
        chat_template=False,
        is_embedded=False,
    )
