"""A dry run without weights: what the model's layers would hand to the attention function."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.modeling_utils import AttentionInterface

from .support import refuse
from .text import one_line

PROBE_NAME = "frtool_probe"
TOKENS = 4
# Tensors that say nothing about who sees whom, beside the sinks, which the hook honours.
HARMLESS_TENSORS = {"position_ids", "cache_position", "position_embeddings", "s_aux"}


class KeywordsDropped(Exception):
    """The model did not pass `tree` down to its attention function."""


@dataclass(slots=True)
class AttentionCall:
    """One layer's call: its index, the shapes of key and value, the window, and what the hook could not honour."""

    layer: int
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    window: int | None
    unknown: list[str]


@dataclass(slots=True)
class Recorder:
    """Collects the calls of one pass. Like TreeBatch it must not have a `.to`."""

    calls: list[AttentionCall] = field(default_factory=list)


def check_attention(model_class: Any, config: Any, name: str) -> tuple[int, int] | None:
    """Key-value heads and head size that the layers of this model hand over.

    Raises ModelError when they would call the attention in a way that the tree cannot serve. The model is built and run
    on the meta device, so it costs no weights. None for models whose own code cannot run there: `selfcheck` sees them
    with their weights.
    """
    kind = one_line(config.model_type, 40)
    try:
        calls = record_calls(model_class, config)
    except KeywordsDropped:
        raise refuse(name, f"{kind} does not hand keyword arguments on to its attention function") from None
    if calls is None:
        return None
    text = config.get_text_config(decoder=True)
    layers = int(text.num_hidden_layers)
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise refuse(name, f"{len({call.layer for call in calls})} of {kind}'s {layers} layers are plain attention")
    if any(call.key_shape != call.value_shape for call in calls):
        raise refuse(name, f"{kind}'s keys and values differ in size")
    if len({call.key_shape for call in calls}) > 1:
        raise refuse(name, f"{kind}'s layers differ in the number or size of their key-value heads")
    unknown = sorted({word for call in calls for word in call.unknown})
    if unknown:
        raise refuse(name, f"{kind}'s attention depends on {one_line(', '.join(unknown))}")
    types = getattr(text, "layer_types", None) or []
    if any(types[call.layer] == "sliding_attention" and call.window is None for call in calls if types):
        raise refuse(name, f"{kind} does not tell its attention function the sliding window")
    return calls[0].key_shape[1], calls[0].key_shape[3]


def record_calls(model_class: Any, config: Any) -> list[AttentionCall] | None:
    """The attention calls of one pass over a few tokens, in order; None when the model cannot run without weights.

    Raises KeywordsDropped.
    """
    recorder = Recorder()
    config = copy.deepcopy(config)
    # The only one of the experts' implementations without sizes that depend on the data.
    config._experts_implementation = "batched_mm"
    try:
        with torch.device("meta"), torch.inference_mode():
            model = model_class._from_config(config, attn_implementation=PROBE_NAME).eval()
            ids = torch.zeros(1, TOKENS, dtype=torch.long)
            model(input_ids=ids, position_ids=ids, use_cache=False, tree=recorder)
    except KeywordsDropped:
        raise
    except Exception:
        # Any library error may end a dry run; it proves nothing about the model.
        return None
    return recorder.calls


def record_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    tree: Recorder | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function of the `AttentionInterface` contract that only writes down its call."""
    if tree is None:
        raise KeywordsDropped
    unknown = [
        word for word, given in kwargs.items() if isinstance(given, torch.Tensor) and word not in HARMLESS_TENSORS
    ]
    if attention_mask is not None:
        unknown.append("attention_mask")
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        unknown.append("later tokens")
    layer = getattr(module, "layer_idx", None)
    tree.calls.append(
        AttentionCall(-1 if layer is None else layer, tuple(key.shape), tuple(value.shape), sliding_window, unknown)
    )
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(PROBE_NAME, record_attention)
