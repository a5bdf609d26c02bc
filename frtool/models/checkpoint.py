"""What a model directory holds, read from its small files and file headers before any weight is loaded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frtool.errors import ModelError

from .text import one_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model", "vocab.txt")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class WeightSummary:
    """Weights as stored: number of values, bytes of all tensors, and the files that hold them."""

    parameters: int
    stored_bytes: int
    files: tuple[Path, ...]


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a model directory. Raises ModelError when it is missing, corrupt or an adapter's."""
    path = directory / "config.json"
    if (directory / "adapter_config.json").is_file():
        raise ModelError(f"{directory} is an adapter, not a model", hint="merge it into its base model first")
    if not path.is_file():
        raise ModelError(
            f"{directory} has no config.json", hint="give the directory of a Hugging Face model, or a .gguf file"
        )
    config = _read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type", hint="it is not the configuration of a transformers model")
    return config


def summarize_weights(directory: Path) -> WeightSummary:
    """Find and check the safetensors files of a model directory from their headers.

    Raises ModelError when there are none, when a shard of the index is missing, or when a file is cut short.
    """
    files = _weight_files(directory)
    parameters = stored = 0
    for path in files:
        count, size = _check_safetensors(path)
        parameters, stored = parameters + count, stored + size
    return WeightSummary(parameters, stored, tuple(files))


def require_tokenizer(directory: Path) -> None:
    """Raise ModelError when the directory holds no tokenizer."""
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{directory} has no tokenizer", hint="copy the model's tokenizer.json next to config.json")


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index} has no weight_map", hint="download the model again")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{index} names files outside its directory")
        present = _names(directory)
        missing = [name for name in names if name not in present]
        if missing:
            raise ModelError(
                f"{directory} lacks {len(missing)} of {len(names)} weight files: {one_line(', '.join(missing))}",
                hint="finish the download",
            )
        return [directory / name for name in names]
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(
            f"{directory} holds its weights as pickle ({one_line(pickles[0])}), which can run code when loaded",
            hint="convert them to safetensors first, or use a GGUF file",
        )
    raise ModelError(f"{directory} has no model.safetensors", hint="finish the download, or name the .gguf file itself")


def _names(directory: Path) -> set[str]:
    """Of the files in a directory. Asking for a file by a name that came from elsewhere can fail in many ways."""
    return {path.name for path in directory.iterdir() if path.is_file()}


def _check_safetensors(path: Path) -> tuple[int, int]:
    """Values and bytes that the header declares, proven against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix == b"version ":
            raise ModelError(f"{path} is a Git LFS pointer, not weights", hint="run `git lfs pull`")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ModelError(f"{path} is no safetensors file, or cut short ({size} bytes)", hint="download it again")
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        parameters = sum(math.prod(map(_count, entry["shape"])) for entry in tensors)
        declared = max((_count(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ModelError(f"{path} has a corrupt header", hint="download it again") from None
    if size - 8 - length != declared:
        raise ModelError(
            f"{path} is {'cut short' if size - 8 - length < declared else 'longer than its header says'}: "
            f"{size:,} bytes, its header promises {declared + 8 + length:,}",
            hint="download it again",
        )
    return parameters, declared


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no count")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {one_line(error)}", hint="download it again") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object", hint="download it again")
    return content
