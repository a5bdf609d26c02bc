"""What a model name means: the embedded model, a directory, a GGUF file or a hub id."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frtool.errors import ModelError

from . import EMBEDDED
from .checkpoint import PICKLE_SUFFIXES
from .gguf_header import MAGIC
from .text import one_line

EMBEDDED_DIRECTORY = Path(__file__).with_name("embedded")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_GGUF = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([\w./-]+\.gguf)")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from. `kind`: 'embedded', 'directory', 'gguf' or 'hub' (then `path` is empty until fetched).

    `path` is the directory, or the GGUF file itself; `repository` and `file` are set for hub sources.
    """

    kind: str
    name: str
    path: Path
    repository: str | None = None
    file: str | None = None


def resolve_model(spec: str) -> ModelSource:
    """Decide what `spec` means, looking at the file system only. Raises ModelError when it can mean nothing."""
    if spec == EMBEDDED:
        if not (EMBEDDED_DIRECTORY / "model.safetensors").is_file():
            raise ModelError(
                "the embedded model's weights are not in this installation", hint="reinstall, or pass --model DIR"
            )
        return ModelSource("embedded", EMBEDDED, EMBEDDED_DIRECTORY)
    if not spec.strip() or "\0" in spec:
        raise ModelError("the model name is empty", hint="pass a directory, a .gguf file or a hub id")
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return _directory(path)
        if path.is_file():
            return _file(path)
    except OSError as error:
        raise ModelError(f"{one_line(spec)} cannot be read: {error.strerror}") from None
    if not spec.startswith((".", "/", "~")) and not {".", ".."} & set(spec.split("/")):
        if match := HUB_GGUF.fullmatch(spec):
            return ModelSource("hub", Path(match[2]).stem, Path(), match[1], match[2])
        if HUB_ID.fullmatch(spec) and path.suffix not in (".gguf", ".safetensors", *PICKLE_SUFFIXES):
            return ModelSource("hub", spec, Path(), spec)
    raise ModelError(f"no such file or directory: {one_line(spec)}", hint="pass a directory, a .gguf file or a hub id")


def _directory(path: Path) -> ModelSource:
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and not (path / "config.json").is_file():
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs[:4])
            raise ModelError(f"{path} holds {len(ggufs)} GGUF files: {names}", hint="name one of them")
        return _file(ggufs[0])
    return ModelSource("directory", path.resolve().name, path)


def _file(path: Path) -> ModelSource:
    with path.open("rb") as file:
        is_gguf = file.read(4) == MAGIC
    if is_gguf or path.suffix == ".gguf":
        return ModelSource("gguf", path.stem, path)
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelError(
            f"{path} is a pickle, which can run code when loaded", hint="pass a safetensors directory or a GGUF file"
        )
    if path.suffix in (".safetensors", ".json"):
        raise ModelError(f"{path} is one file of a model", hint=f"pass its directory: {path.parent}")
    raise ModelError(f"{path} is no model file", hint="pass a directory, a .gguf file or a hub id")
