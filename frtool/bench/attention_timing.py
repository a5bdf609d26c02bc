"""Time a call as a decode step meets it: cold KV, no launch gaps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from frtool.bench.peaks import copy_bandwidth, matrix_rate
from frtool.doctor.machine import processor

Call = Callable[[], object]
_COLD_BYTES = 256 << 20
"""Several times any L2: rotating over so much data finds none of it cached."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were measured on."""

    name: str
    torch: str
    triton: str | None
    cuda: str | None
    bandwidth: float
    """Bytes a second that a large copy moves, reads plus writes."""
    flops: float
    """Multiply-adds times two a second of a large matrix product."""
    measured_peaks: bool
    """Whether the two were measured now; False: the table's figures for this GPU."""


_PEAKS = {"H100 80GB HBM3": (2.95e12, 700e12), "H200": (4.15e12, 769e12)}
"""Copy bandwidth and sustained fp16 matrix rate, measured."""


def rotating_sets(bytes_each: int, memory: int | None = None) -> int:
    """How many separate sets of data of this size make every read cold, at most what `memory` bytes hold."""
    sets = min(16, max(4, -(-_COLD_BYTES // max(bytes_each, 1))))
    if memory is not None:
        sets = max(1, min(sets, memory // max(bytes_each, 1)))
    return sets


def time_calls(calls: Sequence[Call], *, device: torch.device, repeats: int = 20) -> float:
    """Median seconds a call. `calls` are the same work on separate data, so that each finds its data cold.

    On CUDA all are captured in one graph, which is replayed; elsewhere they are called in turn.
    """
    if device.type == "cuda":
        return _time_graph(calls, repeats)
    for call in calls[:1]:
        call()
    samples = []
    for i in range(max(repeats // 4, 3)):
        begin = time.perf_counter()
        calls[i % len(calls)]()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def _time_graph(calls: Sequence[Call], repeats: int) -> float:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, allocates workspaces: none of it may happen in the capture
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    events: list[tuple[Any, ...]] = [
        tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(repeats)
    ]
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(stop) for start, stop in events)) / 1e3 / len(calls)


def describe_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Name, versions, and the two peaks that floors are counted with."""
    try:
        import triton

        triton_version: str | None = triton.__version__
    except ImportError:
        triton_version = None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()}, {torch.get_num_threads()} threads"
    for known, (bandwidth, flops) in _PEAKS.items():
        if known in name:
            return Machine(name, torch.__version__, triton_version, torch.version.cuda, bandwidth, flops, False)
    bandwidth, flops = copy_bandwidth(device), matrix_rate(device, dtype)
    return Machine(name, torch.__version__, triton_version, torch.version.cuda, bandwidth, flops, True)
