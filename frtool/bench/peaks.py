"""What a machine can do at best, measured: the two rates that floors and rooflines are counted with."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_COPIES = 6


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy too large for any cache."""
    size = 1 << 30 if device.type == "cuda" else 1 << 27
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _least_seconds(lambda: target.copy_(source), device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds times two a second of a large matrix product of random numbers."""
    width = 8192 if device.type == "cuda" else 768
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return 2 * width**3 / _least_seconds(lambda: a @ b, device)


def _least_seconds(call: Callable[[], object], device: torch.device) -> float:
    """By the host's clock: timed in a CUDA graph, an H200's copy came out at two thirds of this."""
    times = []
    for _ in range(_COPIES):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)
