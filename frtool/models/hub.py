"""Files of the Hugging Face hub: from the local cache where complete, else downloaded."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from frtool.errors import ModelError

from .memory import require_memory, size_text
from .resolve import ModelSource, Progress
from .text import one_line

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*"]
WEIGHT_FILES = ["model*.safetensors"]
REPORTED_BYTES = 1_000_000


def is_offline(offline: bool) -> bool:
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch_small_files(source: ModelSource, *, offline: bool, on_progress: Progress) -> Path:
    """Directory with the configuration and the tokenizer of a hub model. Raises ModelError when it cannot be had."""
    assert source.repository is not None
    cached = _cached(source.repository, SMALL_FILES)
    if cached is not None and (cached / "config.json").is_file():
        return cached
    _require_network(source, offline)
    return _download(source, SMALL_FILES, on_progress)


def fetch_weights(
    source: ModelSource, directory: Path, device: torch.device, *, offline: bool, on_progress: Progress
) -> Path:
    """Directory with the weights too.

    Raises ModelError when they are neither cached nor downloadable, or when `device` has no room for them.
    """
    assert source.repository is not None
    if _has_weights(directory):
        return directory
    _require_network(source, offline)
    # Before gigabytes arrive for nothing; what the weights take up once converted is checked again from their headers.
    require_memory(source.name, _missing_bytes(source.repository, WEIGHT_FILES), device)
    return _download(source, SMALL_FILES + WEIGHT_FILES, on_progress)


def fetch_gguf(source: ModelSource, *, offline: bool, on_progress: Progress) -> Path:
    """One GGUF file of a hub repository. Raises ModelError when it is neither cached nor downloadable."""
    assert source.repository is not None
    assert source.file is not None
    cached = _cached(source.repository, [source.file])
    if cached is not None and (cached / source.file).is_file():
        return cached / source.file
    _require_network(source, offline)
    path = _download(source, [source.file], on_progress) / source.file
    if not path.is_file():
        raise ModelError(f"{source.repository} has no file {source.file}", hint="check the file name on the hub")
    return path


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


def _cached(repository: str, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):
        return None


def _download(source: ModelSource, patterns: list[str], on_progress: Progress) -> Path:
    """Fetch what is missing, in silence but for `on_progress`. Raises ModelError."""
    from huggingface_hub import snapshot_download

    assert source.repository is not None
    on_progress(f"fetching {source.name}")
    with _silent_hub(), _reporting_bar(source.name, on_progress) as bar:
        try:
            return Path(snapshot_download(source.repository, allow_patterns=patterns, tqdm_class=bar))
        except Exception as error:
            raise _failure(source.repository, error) from None


def _missing_bytes(repository: str, patterns: list[str]) -> int:
    """Size of the files that a download would have to fetch."""
    from huggingface_hub import snapshot_download

    with _silent_hub(), _reporting_bar(repository, lambda _: None) as bar:
        try:
            plan = snapshot_download(repository, allow_patterns=patterns, dry_run=True, tqdm_class=bar)
        except Exception as error:
            raise _failure(repository, error) from None
    return sum(file.file_size or 0 for file in plan if file.will_download)


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    from huggingface_hub.utils import logging as hub_logging

    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _reporting_bar(name: str, on_progress: Progress) -> Iterator[Any]:
    """A tqdm class that draws nothing and reports the bytes so far, while the context lasts."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    last = ""
    open_ = True

    class ReportingBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})

        def display(self, *args: Any, **options: Any) -> None:
            nonlocal last
            stage = f"fetching {name}: {size_text(int(self.n))} of {size_text(int(self.total or 0))}"
            if open_ and self.unit == "B" and (self.total or 0) >= REPORTED_BYTES and stage != last:
                last = stage
                on_progress(stage)

    try:
        yield ReportingBar
    finally:
        open_ = False


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
