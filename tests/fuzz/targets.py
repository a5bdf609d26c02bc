"""What each fuzzer feeds, and the refusals that are in order. Anything else that is raised is a crash."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frtool import resume, trace
from frtool.errors import FrtoolError, UsageError
from frtool.models import checkpoint, gguf_header
from frtool.replay import verify
from frtool.scoring import preset
from frtool.search import events
from frtool.tasks import arithmetic, puzzle, steps
from frtool.verify import arithmetic as verifier
from frtool.view.model import TreeModel

_FOLDER = Path(tempfile.mkdtemp(prefix="frtool-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_MODEL = _FOLDER / "model"


@dataclass(frozen=True, slots=True)
class Target:
    """`run` takes any bytes; `seeds` are inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    longest: int = 4096


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _trace(data: bytes) -> None:
    model = TreeModel()
    path = _file("t.jsonl", data)
    with contextlib.suppress(trace.TraceError):
        for event in trace.TraceReader(path):
            model.apply(event)
    for node in model.walk():
        node.path()
    with contextlib.suppress(trace.TraceError):
        found = resume.read_trace(path)
        if isinstance(found, resume.Unfinished):
            assert 0 < found.keep <= len(data)
            with contextlib.suppress(FrtoolError):
                verify.trusted_config(path, found.record.started, trust_remote_code=False, trust_verify_command=False)


def _prompt(data: bytes) -> None:
    found = puzzle.parse_puzzle(data.decode("utf-8", "surrogateescape"))
    if found is not None:
        arithmetic.embedded_limit(found)


def _preset(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        preset.read_preset(str(_file("p.toml", data)))


_PUZZLE = puzzle.Puzzle((4, 5, 6, 10), 24)


def _arithmetic(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(verifier.ExpressionError):
        verifier.evaluate(text)
    verifier.ArithmeticVerifier(_PUZZLE).verify(text)
    steps.parse_move(text)
    task = arithmetic.ArithmeticTask(_PUZZLE)
    task.answer(text)
    task.state(text)
    task.key(text)


def _gguf(data: bytes) -> None:
    with contextlib.suppress(FrtoolError):
        gguf_header.read_gguf_header(_file("m.gguf", data))


def _checkpoint(data: bytes) -> None:
    """The first byte says which file of a model folder the rest is."""
    _MODEL.mkdir(exist_ok=True)
    names = ("config.json", "model.safetensors.index.json", "model.safetensors", "a.safetensors")
    for name in names:
        (_MODEL / name).unlink(missing_ok=True)
    chosen = names[data[0] % len(names)] if data else names[0]
    (_MODEL / chosen).write_bytes(data[1:])
    if chosen == "a.safetensors":
        (_MODEL / names[1]).write_text('{"weight_map": {"w": "a.safetensors"}}', "utf-8")
    with contextlib.suppress(FrtoolError):
        checkpoint.read_config(_MODEL)
    with contextlib.suppress(FrtoolError):
        summary = checkpoint.summarize_weights(_MODEL)
        assert all(path.resolve().parent == _MODEL.resolve() for path in summary.files), summary.files


def _safetensors(shape: list[int], size: int) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def _gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


_TRACE_SEED = "\n".join(
    json.dumps(events.to_record(event))
    for event in (
        events.RunStarted("Make 24 from 4, 5, 6, 10", {"algorithm": "beam"}, {"name": "embedded"}, 12),
        events.Selected(["0.0", "0.1"]),
        events.NodeAdded("0.0", "4+6=10 (5 10 10)\n", 12, -1.5, 0.5, 0.25, token_ids=[7, 9], finish="step", poll=3),
        events.NodeAdded("0.1", "6+4=10 (5 10 10)\n", 12, -1.5, 0.5, 0.25, duplicate_of="0.0"),
        events.Backup("0.0", 0.25),
        events.Pruned(["0.0"], "beam"),
        events.Tick(0.1, 24, 2, 1, 2, 16, 3, 99, 40, 60, growing={"0.2": "4"}, evicted=["0.0"]),
        events.Resumed(0.1, 2),
        events.NodeAdded("0.2", "4*6=24 (24)\n", 12, -1.5, 0.5, 0.25, "end", late=True),
        events.Ended("finished", "0.0", "4+6", 0.25),
    )
)
_GGUF_SEED = (
    struct.pack("<4sIQQ", b"GGUF", 3, 1, 2)
    + _gguf_text(b"general.architecture") + struct.pack("<I", 8) + _gguf_text(b"llama")
    + _gguf_text(b"general.alignment") + struct.pack("<II", 4, 32)
    + _gguf_text(b"w") + struct.pack("<IQIQ", 1, 4, 0, 0) + bytes(64)
)  # fmt: skip

TARGETS: dict[str, Target] = {
    "trace": Target(_trace, (_TRACE_SEED.encode(), _TRACE_SEED.encode() + b"\n")),
    "prompt": Target(_prompt, (b"Make 24 from 4, 5, 6, 10", b"Use 3 7 25 50 to reach 765", b"24 game: 4 5 6 10")),
    "preset": Target(
        _preset,
        (
            b'layout = "text"\nread_at = "tag"\nhead = "lm"\nstep_tag = "K"\ngood_token = "+"\nbad_token = "-"\n',
            b'layout = "chat"\nread_at = "tag"\nhead = "value"\nstep_tag = "K"\nhead_tensors = "s"\nsquash = "tanh"\n',
        ),
    ),
    "arithmetic": Target(_arithmetic, (b"(10-6)*5+4", b"-3/(8-2*4)", b"10-4=6 (5 6 6)\n5*6=30 (6 30)\n", b"9**9**9")),
    "gguf": Target(_gguf, (_GGUF_SEED,), 8192),
    "checkpoint": Target(
        _checkpoint,
        (
            b'\x00{"model_type": "llama"}',
            b'\x01{"weight_map": {"w": "a.safetensors", "v": "../b.safetensors"}}',
            b"\x02" + _safetensors([2, 2], 16),
            b"\x03" + _safetensors([4], 16),
        ),
    ),
}
