"""The header of a GGUF file: enough to refuse a corrupt or unsupported one before anything large is read.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frtool.errors import ModelError

from .text import one_line

MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
MAX_DIMENSIONS = 8
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """`architecture` as the file names it, `parameters` in all tensors, whether some of these are quantized in blocks,
    and the scalar and string `metadata`."""

    architecture: str
    parameters: int
    is_quantized: bool
    metadata: dict[str, Any]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file. Raises ModelError when it is no GGUF file, corrupt or cut short."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise ModelError(f"{path} is no GGUF file ({path.stat().st_size} bytes)", hint="download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (struct.error, UnicodeDecodeError, KeyError, EOFError, RecursionError):
        raise ModelError(f"{path} is a corrupt or cut GGUF file", hint="download it again") from None


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    if data[:4] != MAGIC:
        raise ModelError(f"{path} is no GGUF file: it does not begin with GGUF", hint="download it again")
    version, tensors, pairs = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ModelError(f"{path} has GGUF version {version}", hint="versions 2 and 3 in little-endian order are read")
    reader = _Reader(data, 24)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = reader.string()
        value = reader.value(reader.scalar("I"))
        if value is not None:
            metadata[key] = value
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise EOFError
    parameters, quantized, end = _tensors(reader, tensors, alignment)
    if end > len(data):
        raise ModelError(
            f"{path} is cut short: {len(data):,} bytes, its header promises {end:,}", hint="download it again"
        )
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(f"{path} names no architecture", hint="it is not a language model")
    return GgufHeader(one_line(architecture, 40), parameters, quantized, metadata)


def _tensors(reader: _Reader, count: int, alignment: int) -> tuple[int, bool, int]:
    """Total number of values, whether some are quantized, and the size that the file must at least have."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    parameters = last = 0
    quantized = False
    for _ in range(count):
        reader.string()
        dimensions = reader.scalar("I")
        if dimensions > MAX_DIMENSIONS:
            raise EOFError
        values = 1
        for _ in range(dimensions):
            values *= reader.scalar("Q")
        kind, offset = reader.scalar("I"), reader.scalar("Q")
        try:
            block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            raise EOFError from None
        parameters += values
        quantized |= block_values > 1
        last = max(last, offset + values // block_values * block_bytes)
    start = -(-reader.position // alignment) * alignment
    return parameters, quantized, start + last


class _Reader:
    """Bounds-checked little-endian reads; `struct.error` or EOFError past the end."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self.data = data
        self.position = position

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.position)[0]
        self.position += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise EOFError
        return self.data[start : self.position].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """One metadata value; arrays are skipped and give None."""
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if item in SCALARS:
            self.position += count * struct.calcsize("<" + SCALARS[item])
            if self.position > len(self.data):
                raise EOFError
        elif item == STRING:
            for _ in range(count):
                length = self.scalar("Q")
                self.position += length
                if self.position > len(self.data):
                    raise EOFError
        else:
            for _ in range(count):
                self.value(item)
        return None
