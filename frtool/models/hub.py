"""Files of the Hugging Face hub: from the local cache where complete, else downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from frtool.errors import ModelError

from .resolve import ModelSource, Progress
from .text import one_line

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
WEIGHT_FILES = ["*.safetensors"]


def is_offline(offline: bool) -> bool:
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch_small_files(source: ModelSource, *, offline: bool, on_progress: Progress) -> Path:
    """Directory with the configuration and the tokenizer of a hub model. Raises ModelError when it cannot be had."""
    assert source.repository is not None
    cached = _snapshot(source.repository, SMALL_FILES, local=True)
    if cached is not None and (cached / "config.json").is_file():
        return cached
    _require_network(source, offline)
    on_progress(f"fetching {source.name}")
    return _download(source.repository, SMALL_FILES)


def fetch_weights(source: ModelSource, directory: Path, *, offline: bool, on_progress: Progress) -> Path:
    """Directory with the weights too. Raises ModelError when they are neither cached nor downloadable."""
    assert source.repository is not None
    if _has_weights(directory):
        return directory
    _require_network(source, offline)
    on_progress(f"downloading {source.name}")
    return _download(source.repository, SMALL_FILES + WEIGHT_FILES)


def fetch_gguf(source: ModelSource, *, offline: bool, on_progress: Progress) -> Path:
    """One GGUF file of a hub repository. Raises ModelError when it is neither cached nor downloadable."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    assert source.repository is not None
    assert source.file is not None
    cached = try_to_load_from_cache(source.repository, source.file)
    if isinstance(cached, str):
        return Path(cached)
    _require_network(source, offline)
    on_progress(f"downloading {source.name}")
    try:
        return Path(hf_hub_download(source.repository, source.file))
    except Exception as error:
        raise _failure(source.repository, error) from None


def _has_weights(directory: Path) -> bool:
    from .checkpoint import summarize_weights

    try:
        summarize_weights(directory)
    except ModelError:
        return False
    return True


def _require_network(source: ModelSource, offline: bool) -> None:
    if is_offline(offline):
        raise ModelError(
            f"{source.repository} is neither a local directory nor complete in the hub cache, and offline mode is on",
            hint="download it first, or drop --offline / HF_HUB_OFFLINE",
        )


def _snapshot(repository: str, patterns: list[str], *, local: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=local))
    except Exception as error:
        if local:
            return None
        raise _failure(repository, error) from None


def _download(repository: str, patterns: list[str]) -> Path:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        directory = _snapshot(repository, patterns, local=False)
    finally:
        if not quiet:
            enable_progress_bars()
    assert directory is not None
    return directory


def _failure(repository: str, error: Exception) -> ModelError:
    """The hub client's exception in one line."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{repository} is gated", hint="accept its terms on the hub and log in with `hf auth login`")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"{repository} is not on the hub, or private", hint="check the name, or log in")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(f"{repository} has no such file", hint="check the file name on the hub")
    if isinstance(error, errors.LocalEntryNotFoundError | OSError) or "onnect" in type(error).__name__:
        return ModelError(
            f"{repository} is neither a local path nor in the hub cache, and the hub cannot be reached",
            hint="pass a directory or a .gguf file, or connect to the network",
        )
    return ModelError(f"{repository} could not be fetched: {one_line(error)}")
