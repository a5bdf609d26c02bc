"""The directory that AutoModelForCausalLM and AutoTokenizer load."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .network import Reasoner, Shape
from .vocabulary import BOS, EOS, PAD, VOCABULARY_SIZE, write_tokenizer


def write_checkpoint(directory: Path, tensors: dict[str, Tensor], shape: Shape) -> None:
    """Configuration, tokenizer and `model.safetensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": dtype, **shape.llama_config()}
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    for name, values in (("config.json", config), ("generation_config.json", generation)):
        (directory / name).write_text(json.dumps(values, indent=2) + "\n")
    write_tokenizer(directory, shape.max_position_embeddings)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_parts(directory: Path, tensors: dict[str, Tensor], max_bytes: int) -> None:
    """The weights alone, in files of at most `max_bytes` (or one tensor) each, for a transfer that limits file size."""
    directory.mkdir(parents=True, exist_ok=True)
    part: dict[str, Tensor] = {}
    written = 0
    for name, tensor in tensors.items():
        if part and sum(t.nbytes for t in part.values()) + tensor.nbytes > max_bytes:
            save_file(part, directory / f"part-{written}.safetensors")
            part, written = {}, written + 1
        part[name] = tensor
    save_file(part, directory / f"part-{written}.safetensors")


def join_parts(directory: Path) -> dict[str, Tensor]:
    """The tensors that `write_parts` wrote there."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("part-*.safetensors")):
        tensors.update(load_file(path))
    return tensors


@torch.no_grad()
def load_weights(reasoner: Reasoner, directory: Path) -> None:
    """Set a network to the checkpoint in `directory`. Raises RuntimeError where the shapes differ.

    The rows that training adds to the embedding are as unlikely as padding.
    """
    tensors = load_file(directory / "model.safetensors")
    name = "model.embed_tokens.weight"
    rows = reasoner.model.embed_tokens.weight.shape[0] - VOCABULARY_SIZE
    tensors[name] = torch.cat((tensors[name], tensors[name][PAD].expand(rows, -1)))
    reasoner.load_state_dict(tensors)
