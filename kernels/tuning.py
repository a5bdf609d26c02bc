"""Which tile sizes to launch with: a shipped table for Hopper, for other GPUs a choice by timing, kept on disk."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """Compile-time sizes of the kernel. Rows are query tokens times heads of a group, padded to a power of two."""

    wide_rows: int
    """Rows of a wide tile; 0 for none."""
    wide_keys: int
    wide_stages: int
    narrow_keys: int
    narrow_stages: int
    edge_keys: int = 32
    edge_stages: int = 3
    """Keys a round, and rounds in flight plus 1, where a wide tile needs a mask."""
    warps: int = 8
    max_registers: int | None = None
    group_rows: int = 16
    merge_rows: int = 16
    merge_parts: int = 4
    """Rows that are merged at once, and parts of each that are read at once."""
    pairs: int = 1
    """How many times two programs are expected to fit a multiprocessor."""
    roomy: int = 0
    """As long as there are no more programs a multiprocessor than this, they may take all the registers they want."""


# 128 registers. Of 8 warps and under 113 KB of shared memory two programs fit a multiprocessor, of 4 warps and 56 KB
# four: those hide each other's waits better, and read what is shared more often. Where a launch has no more than that,
# captured with room for a quarter more, about three are at work: what more registers save each is time.
_HOPPER = {
    64: KernelConfig(128, 64, 3, 128, 3, max_registers=128),
    128: KernelConfig(64, 32, 2, 64, 2, edge_stages=2, warps=4, max_registers=128, pairs=2, roomy=4),
    256: KernelConfig(64, 32, 2, 32, 3, edge_stages=2, max_registers=128),
}
# Beside one program of 8 warps there is room for two of 4. With fewer than 144 registers ptxas lets each wgmma of the
# wide tiles wait for the one before ("serialized due to insufficient register resources").
_HOPPER_APART = {
    128: (
        KernelConfig(128, 64, 2, 64, 2, edge_stages=2, max_registers=144),
        KernelConfig(0, 32, 2, 32, 2, warps=4, max_registers=112),
    )
}
_SINGLE = KernelConfig(0, 32, 2, 32, 2)  # fp32 runs without tensor cores: narrow tiles only
_HALF_CANDIDATES = (
    KernelConfig(128, 64, 2, 64, 3, max_registers=128),
    KernelConfig(128, 32, 3, 32, 4),
    KernelConfig(64, 32, 3, 32, 4, warps=4),
    KernelConfig(64, 32, 2, 32, 2, edge_stages=2, warps=4),
    KernelConfig(0, 32, 2, 32, 2, warps=4),
)
_SINGLE_CANDIDATES = (
    _SINGLE,
    KernelConfig(0, 16, 2, 16, 2, warps=4, merge_parts=2),
    KernelConfig(0, 16, 1, 16, 1, warps=4, merge_parts=2),
)


def candidates(dtype: torch.dtype) -> tuple[KernelConfig, ...]:
    """What to choose from by timing. The last fits every GPU that Triton supports."""
    return _SINGLE_CANDIDATES if dtype == torch.float32 else _HALF_CANDIDATES


def merge_rows(config: KernelConfig) -> int:
    """Rows that a merge item takes."""
    return max(min(config.wide_rows, config.merge_rows), config.group_rows)


def padded_head_dim(head_dim: int) -> int:
    """The power of two that the kernel computes a head in."""
    return max(16, 1 << (head_dim - 1).bit_length())


def shipped_config(dtype: torch.dtype, head_dim: int, capability: tuple[int, int] | None) -> KernelConfig | None:
    """The table's choice for a compute capability (None: the interpreter), or None where there is none."""
    if capability is not None and capability[0] != 9:
        return None
    return _SINGLE if dtype == torch.float32 else _HOPPER[min(max(padded_head_dim(head_dim), 64), 256)]


def shipped_apart(dtype: torch.dtype, head_dim: int) -> tuple[KernelConfig, KernelConfig] | None:
    """What wide items in a launch of their own and the launch of the others beside it use on a GPU that
    `shipped_config` knows; None where one launch does it all."""
    return None if dtype == torch.float32 else _HOPPER_APART.get(padded_head_dim(head_dim))


def cache_path() -> Path:
    """Where timed choices are kept: `triton-tuning.json` below FRTOOL_CACHE, XDG_CACHE_HOME/frtool or ~/.cache."""
    folder = os.environ.get("FRTOOL_CACHE")
    if folder is None:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "frtool")
    return Path(folder) / "triton-tuning.json"


def _read(path: Path) -> dict[str, dict[str, int | None]]:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def timed_config(key: str, options: Sequence[KernelConfig], time: Callable[[KernelConfig], float]) -> KernelConfig:
    """The fastest of `options`, from the cache file or by calling `time` (seconds; it raises where one does not fit).
    The last if none runs.

    `key` names all that the choice depends on: GPU, Triton, dtype, head size.
    """
    path = cache_path()
    known = _read(path).get(key)
    if known is not None:
        try:
            return KernelConfig(**known)  # type: ignore[arg-type]
        except TypeError:
            _LOG.info("ignoring a tuning entry of another version in %s", path)
    best, best_time = options[-1], float("inf")
    for config in options:
        try:
            seconds = time(config)
        except Exception as error:  # a config that does not fit raises whatever the compiler or driver raises
            _LOG.info("%s does not run here: %s", config, error)
            continue
        if seconds < best_time:
            best, best_time = config, seconds
    table = _read(path)
    table[key] = asdict(best)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(table, indent=1, sort_keys=True))
        temporary.replace(path)
    except OSError as error:
        _LOG.info("cannot keep tuning results in %s: %s", path, error)
    return best


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; a small number for the interpreter, so that tests see split streams."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def early_programs(device: torch.device) -> int:
    """The most programs of a launch that lets the next one start at once: one a multiprocessor. Beside more of them the
    next ones gather on a few multiprocessors, and take longer. 0 where no launch can start before the end of the one
    before it: that takes Hopper."""
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] < 9:
        return 0
    return multiprocessors(device)
