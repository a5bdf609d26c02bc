"""Whether two models of one name are the same, from a small part of their files."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

_SAMPLES = 64
_BYTES = 4096


def fingerprint(source: str) -> str | None:
    """16 hexadecimal digits of the weight files of a model directory, or of a GGUF file; None where none can be read.

    Of each file its size and 64 pieces of 4 KiB count, spread evenly: weights that were trained differ everywhere, and
    reading all of a large model would take minutes.
    """
    path = Path(source)
    try:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        digest = blake2b(digest_size=8)
        for file in files:
            size = file.stat().st_size
            digest.update(f"{file.name}/{size}/".encode())
            with file.open("rb") as data:
                for place in range(_SAMPLES):
                    data.seek(max(size - _BYTES, 0) * place // (_SAMPLES - 1), os.SEEK_SET)
                    digest.update(data.read(_BYTES))
    except OSError:
        return None
    return digest.hexdigest() if files else None
