"""The models that are on this machine, and which of them can be searched. Nothing is loaded or downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frtool.errors import ModelError

from . import EMBEDDED
from .checkpoint import read_config, require_tokenizer, summarize_weights
from .gguf_header import read_gguf_header
from .resolve import EMBEDDED_DIRECTORY
from .text import one_line

_DEPTH = 3
_MOST_FOLDERS = 5000
_SKIPPED = {"node_modules", "site-packages", "__pycache__", "venv"}


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model. `name` is what `--model` takes; `kind` is 'embedded', 'hub', 'directory' or 'gguf'.

    `stored_bytes` are the bytes of its weight files. `refusal` says why it cannot be searched, None where it can;
    `tested` whether the tests hold its architecture to an independent forward pass, else loading tries it first.
    """

    name: str
    kind: str
    path: Path
    architecture: str | None = None
    parameters: int | None = None
    stored_bytes: int | None = None
    refusal: str | None = None
    tested: bool = False


def hub_cache() -> Path:
    """Where the hub client keeps its files."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find_models(folders: Iterable[Path], cache: Path) -> Iterator[FoundModel]:
    """The embedded model, what the hub cache holds, and what lies in `folders`, down to three levels."""
    yield _checked(EMBEDDED, "embedded", EMBEDDED_DIRECTORY)
    for name, snapshot in _snapshots(cache):
        if (snapshot / "config.json").is_file():
            yield _checked(name, "hub", snapshot)
        for file in sorted(snapshot.glob("*.gguf")):
            yield _checked(f"{name}/{file.name}", "gguf", file)
    seen: set[Path] = set()
    for folder in folders:
        for path in _candidates(folder):
            real = path.resolve()
            if real not in seen and EMBEDDED_DIRECTORY not in (real, *real.parents):
                seen.add(real)
                yield _checked(str(path), "gguf" if path.suffix == ".gguf" else "directory", path)


def _snapshots(cache: Path) -> Iterator[tuple[str, Path]]:
    """The current snapshot of each repository in the cache."""
    for folder in sorted(cache.glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        try:
            commit = (folder / "refs" / "main").read_text().strip()
        except (OSError, ValueError):
            commit = ""
        snapshots = sorted((folder / "snapshots").glob("*"))
        current = folder / "snapshots" / commit
        if commit and current.is_dir():
            yield name, current
        elif snapshots:
            yield name, snapshots[-1]


def _candidates(folder: Path) -> Iterator[Path]:
    """GGUF files and directories that look like models, in order."""
    base = len(folder.parts)
    for visited, (place, below, files) in enumerate(os.walk(folder)):
        here = Path(place)
        deep = len(here.parts) - base >= _DEPTH or visited >= _MOST_FOLDERS
        below[:] = [] if deep else sorted(d for d in below if not d.startswith(".") and d not in _SKIPPED)
        if "config.json" in files and any(f.endswith((".safetensors", ".safetensors.index.json")) for f in files):
            yield here
        for file in sorted(files):
            if file.endswith(".gguf"):
                yield here / file


def _checked(name: str, kind: str, path: Path) -> FoundModel:
    """What can be said of one model without its weights."""
    found: dict[str, Any] = {}
    try:
        if kind == "gguf":
            _read_gguf(path, found)
        else:
            _read_directory(name, path, found, known=kind == "embedded")
    except ModelError as error:
        reason = one_line(error.message.replace(str(path), path.name), 300)
        found["refusal"] = reason.removeprefix(f"{name} cannot be searched: ")
    except OSError as error:
        found["refusal"] = f"cannot be read: {error.strerror}"
    return FoundModel(name, kind, path, **found)


def _read_directory(name: str, path: Path, found: dict[str, Any], *, known: bool) -> None:
    from .support import TESTED_TYPES, check_config

    raw = read_config(path)
    found["architecture"] = one_line(raw["model_type"], 40)
    found["tested"] = raw["model_type"] in TESTED_TYPES
    weights = summarize_weights(path)
    found |= {"parameters": weights.parameters, "stored_bytes": weights.stored_bytes}
    require_tokenizer(path)
    if known:
        return
    from .architecture import load_config, model_class_of, quiet_transformers

    with quiet_transformers():
        config = load_config(name, raw, path, False)
        check_config(config, name)
        model_class_of(config, name, False)


def _read_gguf(path: Path, found: dict[str, Any]) -> None:
    found["stored_bytes"] = path.stat().st_size
    header = read_gguf_header(path)
    found |= {"architecture": header.architecture, "parameters": header.parameters}
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from .architecture import model_class_of, quiet_transformers
    from .support import TESTED_TYPES, check_config

    kind = _SAME.get(header.architecture, header.architecture)
    if header.architecture not in GGUF_SUPPORTED_ARCHITECTURES and kind not in GGUF_SUPPORTED_ARCHITECTURES:
        raise ModelError(f"transformers cannot unpack the GGUF architecture {header.architecture!r}")
    found["tested"] = kind in TESTED_TYPES
    if kind in CONFIG_MAPPING:  # the kind alone decides; the file's own figures are read when it loads
        with quiet_transformers():
            config = CONFIG_MAPPING[kind]()
            check_config(config, path.stem)
            model_class_of(config, path.stem, False)


_SAME = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text", "gpt-oss": "gpt_oss"}
"""GGUF's names of architectures where transformers' differ."""
