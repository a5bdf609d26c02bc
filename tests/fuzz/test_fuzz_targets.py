"""The fuzzers' targets on what once broke them, and on a few hundred inputs of blind chance."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("frtool_fuzz_targets", Path(__file__).with_name("targets.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
targets: Any = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = targets
_SPEC.loader.exec_module(targets)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(tensors: int, pairs: int, body: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, pairs) + body


def safetensors(entry: str) -> bytes:
    header = f'{{"w": {entry}}}'.encode()
    return b"\x02" + struct.pack("<Q", len(header)) + header


ALIGNMENT = text(b"general.alignment")
ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
TEXTS = text(b"a") + struct.pack("<IIQ", 9, 8, 9) + b"\xff" * 80
PRODUCT = '{"shape": [999999999999999, "b"], "data_offsets": [0, 0]}'
DIMENSIONS = struct.pack("<I", 400) + struct.pack("<Q", 2**63) * 400 + struct.pack("<IQ", 0, 0)
BROKE = {
    "alignment that is a text": ("gguf", gguf(0, 1, ALIGNMENT + struct.pack("<I", 8) + text(b"x"))),
    "alignment that is infinite": ("gguf", gguf(0, 1, ALIGNMENT + struct.pack("<If", 6, float("inf")))),
    "tensor of 400 dimensions": ("gguf", gguf(1, 1, ARCHITECTURE + text(b"w") + DIMENSIONS)),
    "texts longer than the address space": (
        "gguf",
        gguf(0, 1, TEXTS),
    ),
    "offset that is infinite": ("checkpoint", safetensors('{"shape": [1], "data_offsets": [0, Infinity]}')),
    "shape that multiplies a text": (
        "checkpoint",
        safetensors(PRODUCT),
    ),
    "header nested deeply": ("checkpoint", b"\x02" + struct.pack("<Q", 10**5) + b"[" * 10**5),
    "shard of a long name": ("checkpoint", b"\x01" + json.dumps({"weight_map": {"w": "a" * 5000}}).encode()),
}


@pytest.mark.parametrize("name", BROKE)
def test_what_once_broke_a_reader_is_refused(name):
    target, data = BROKE[name]
    targets.TARGETS[target].run(data)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_blind_chance_breaks_nothing(name):
    target, draw = targets.TARGETS[name], random.Random(name)
    for _ in range(300):
        data = bytearray(draw.choice(target.seeds))
        for _ in range(draw.randint(0, 6)):
            at = draw.randrange(len(data) + 1)
            data[at : at + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 6))
        target.run(bytes(data))
