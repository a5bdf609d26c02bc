"""Loading a reward model, whose head may be a few numbers in place of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from frtool.errors import ModelError

from . import hub
from .architecture import load_config, model_class_of, quiet_transformers
from .checkpoint import read_config, require_tokenizer, summarize_weights
from .devices import choose_device, choose_dtype, set_threads
from .load import (
    LoadedModel,
    attention_geometry,
    finish_loading,
    load_model,
    pack_weights,
    read_tokenizer,
    read_weights,
)
from .memory import require_memory
from .resolve import Progress, resolve_model
from .support import check_config
from .text import one_line

# Their causal language models hand the last hidden state to `lm_head` and return what it gives, unchanged.
PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"})


class RewardHead(torch.nn.Module):
    """One or more linear layers with ReLU between them, in float32: [..., hidden] to [..., classes]."""

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList()
        for weight, bias in layers:
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                layer.bias = torch.nn.Parameter(bias, requires_grad=False)
            self.layers.append(layer)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out = hidden.float()
        for index, layer in enumerate(self.layers):
            out = layer(torch.relu(out) if index else out)
        return out


def load_reward_model(
    spec: str,
    *,
    head_tensors: str = "",
    classes: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    offline: bool = False,
    on_progress: Progress | None = None,
) -> LoadedModel:
    """Load a reward model; its `logits` are the vocabulary's, or without `head_tensors` empty the head's `classes`.

    The head is read from the model's own safetensors files: `NAME.weight` with or without `NAME.bias`, or the layers
    `NAME.0`, `NAME.2`, … of a stack with ReLU between them. No code that the model brings is run. Raises ModelError as
    `load_model` does, and for a head that is missing or has another shape.
    """
    if not head_tensors:
        return load_model(spec, device=device, dtype=dtype, offline=offline, on_progress=on_progress)
    progress: Progress = on_progress or (lambda _: None)
    target, source = choose_device(device), resolve_model(spec)
    if source.kind not in ("directory", "hub") or source.file is not None:
        raise ModelError(
            f"{source.name} cannot hold the reward head {one_line(head_tensors, 60)}",
            hint="pass a safetensors directory or a Hugging Face id",
        )
    set_threads()
    with quiet_transformers():
        directory = source.path
        if source.kind == "hub":
            directory = hub.fetch_small_files(source, offline=offline, on_progress=progress)
        config = load_config(source.name, read_config(directory), directory, False)
        if config.model_type not in PLAIN_HEADS:
            raise ModelError(
                f"{source.name} is a {one_line(config.model_type, 40)}, whose reward heads frtool cannot place",
                hint=f"it can for {', '.join(sorted(PLAIN_HEADS))}",
            )
        # What remains is an ordinary decoder. Its own output matrix is not needed, and often not there.
        config.architectures, config.tie_word_embeddings = None, True
        check_config(config, source.name)
        model_class = model_class_of(config, source.name, False)
        geometry = attention_geometry(model_class, config, source.name)
        require_tokenizer(directory)
        tokenizer = read_tokenizer(source, directory, False)
        if source.kind == "hub":
            directory = hub.fetch_weights(source, directory, target, offline=offline, on_progress=progress)
        weights = summarize_weights(directory)
        head = read_head(source.name, weights.files, head_tensors, int(config.hidden_size), classes).to(target)
        chosen = choose_dtype(dtype, target, weights.parameters)
        require_memory(source.name, weights.parameters * chosen.itemsize, target)
        progress(f"loading {source.name} ({weights.stored_bytes / 1e6:,.0f} MB)")
        model = read_weights(model_class, source.name, directory, target, config=config, dtype=chosen)
        model.lm_head = head
        return pack_weights(finish_loading(source, str(directory), model, tokenizer, chosen, target, geometry))


def read_head(name: str, files: Sequence[Path], tensors: str, hidden: int, classes: int) -> RewardHead:
    """The head called `tensors` in safetensors `files`. Raises ModelError where it is not `hidden` to `classes`."""
    from safetensors import safe_open

    shown = one_line(tensors, 60)
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                if key.startswith(f"{tensors}."):
                    found[key.removeprefix(f"{tensors}.")] = file.get_tensor(key).float()
    stages = sorted({key.rpartition(".")[0] for key in found}, key=lambda stage: (len(stage), stage))
    layers = []
    width = hidden
    for stage in stages:
        prefix = f"{stage}." if stage else ""
        weight, bias = found.get(f"{prefix}weight"), found.get(f"{prefix}bias")
        if weight is None or weight.dim() != 2 or weight.shape[1] != width:
            shape = "missing" if weight is None else list(weight.shape)
            raise ModelError(f"{name}: {shown}.{one_line(prefix, 40)}weight is {shape}, not [*, {width}]")
        if bias is not None and tuple(bias.shape) != (weight.shape[0],):
            raise ModelError(f"{name}: {shown}.{one_line(prefix, 40)}bias is {list(bias.shape)}")
        layers.append((weight, bias))
        width = weight.shape[0]
    if not layers or width != classes:
        got = f"gives {width} values" if layers else "is not among its weights"
        raise ModelError(
            f"{name}: the reward head {shown} {got}; the preset wants {classes}",
            hint="pass the model's own --reward-preset",
        )
    return RewardHead(layers)
