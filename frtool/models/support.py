"""Which models the tree can hold, decided from the configuration before any weight is loaded."""

from __future__ import annotations

import inspect
from typing import Any

from frtool.errors import ModelError

from .text import one_line

SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
# Held to an independent forward pass and to `generate` by the tests.
TESTED_TYPES = frozenset({"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "smollm3", "gpt_oss"})
SWITCHING_ROPES = {"dynamic", "longrope"}
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
UNBOUNDED = 1 << 20


def check_config(config: Any, name: str) -> None:
    """Raise ModelError naming what about this transformers configuration cannot be searched."""
    text = config.get_text_config(decoder=True)
    kind = one_line(config.model_type, 40)
    if config.is_encoder_decoder:
        raise refuse(name, f"{kind} is an encoder-decoder model")
    declared = [str(architecture) for architecture in config.architectures or ()]
    if declared and not any(architecture.endswith(CAUSAL_SUFFIXES) for architecture in declared):
        raise refuse(name, f"{one_line(declared[0], 60)} is no causal language model")
    layers = set(_layer_types(text))
    if layers - SUPPORTED_LAYERS:
        others = ", ".join(sorted(one_line(layer, 40) for layer in layers - SUPPORTED_LAYERS))
        raise refuse(name, f"{kind} has {others} layers, whose state is not keys and values of single tokens")
    if getattr(text, "num_kv_shared_layers", 0):
        raise refuse(name, f"{kind} shares keys and values across {text.num_kv_shared_layers} layers")
    if getattr(text, "use_bidirectional_attention", None) or getattr(text, "is_causal", True) is False:
        raise refuse(name, f"{kind} attends in both directions")
    if getattr(text, "kv_lora_rank", None) and getattr(text, "v_head_dim", None):
        raise refuse(name, f"{kind} uses latent attention (MLA), whose keys and values differ in size")


def check_class(model_class: Any, config: Any, name: str) -> None:
    """Raise ModelError when the model class does not route attention through the interface, or keeps other state."""
    kind = one_line(config.model_type, 40)
    if getattr(model_class, "_is_stateful", False):
        raise refuse(name, f"{kind} keeps a recurrent state beside its keys and values")
    if not model_class._can_set_attn_implementation():
        raise refuse(name, f"{kind} does not let its attention be replaced (no AttentionInterface)")
    if "logits_to_keep" not in inspect.signature(model_class.forward).parameters:
        raise refuse(name, f"{kind} cannot return the logits of chosen tokens only")


def position_limit(config: Any) -> tuple[int, str | None]:
    """Positions that one branch may have, and why fewer than the model advertises (None when all of them).

    Rotary embeddings of type dynamic and longrope change the angles of all positions once the longest sequence of the
    batch passes a length; keys cached before would then be wrong, so a branch ends there.
    """
    text = config.get_text_config(decoder=True)
    advertised = int(getattr(text, "max_position_embeddings", None) or UNBOUNDED)
    for rope in _ropes(text):
        kind = rope.get("rope_type", rope.get("type"))
        if kind in SWITCHING_ROPES:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None) or advertised
            if kind == "dynamic":
                original = min(int(original), advertised)
            if original < advertised:
                return int(original), f"{kind} rotary embedding changes all positions past {original}"
    return advertised, None


def _ropes(text: Any) -> list[dict[str, Any]]:
    """Rotary parameters, flat or one set a layer type."""
    ropes = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [value for value in ropes.values() if isinstance(value, dict)]
    return nested or [ropes]


def _layer_types(text: Any) -> list[str]:
    for attribute in ("layer_types", "layers_block_type", "block_types"):
        types = getattr(text, attribute, None)
        if types:
            return [str(kind) for kind in types]
    return []


def refuse(name: str, why: str) -> ModelError:
    """The error that says why a model cannot be searched."""
    return ModelError(
        f"{name} cannot be searched: {why}", hint="use a model with ordinary attention, such as Llama, Qwen3 or Gemma"
    )
