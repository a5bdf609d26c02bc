"""Which device and number format to compute in, and how many cores are really there."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from frtool.errors import UsageError

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}
INT4 = "int4"
"""Weights of four bits, see `four_bit`: no format to compute in."""
# Below this many parameters a CPU gains little by bf16: dispatch costs more than arithmetic.
_FEW_PARAMETERS = 10_000_000
# Parameters that are worth a thread.
_THREAD_PARAMETERS = 10_000_000


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, checked to exist; without a wish CUDA where there is one. Raises UsageError."""
    if device is None or str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {str(device)!r}", hint="use cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= found:
            raise UsageError(f"device {chosen} is not there: {found} CUDA devices found", hint="use --device cpu")
    elif chosen.type != "cpu":
        raise UsageError(f"device type {chosen.type!r} is not supported", hint="use cpu, cuda or cuda:N")
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device, parameters: int) -> torch.dtype:
    """The number format asked for, or the fastest that the device computes natively. Raises UsageError.

    `parameters` is the size of the model: small ones stay in float32 on a CPU.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in DTYPES.values():
            raise UsageError(f"number format {dtype} is not supported", hint="use bf16, fp16 or fp32")
        return dtype
    if dtype is not None and dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"unknown number format {dtype!r}", hint="use bf16, fp16, fp32, or int4 on a CPU")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if parameters >= _FEW_PARAMETERS and cpu_has_bf16() else torch.float32


def take_four_bits(dtype: str | torch.dtype | None, device: torch.device) -> tuple[bool, str | torch.dtype | None]:
    """Whether weights are to have four bits, and the number format asked for besides. Raises UsageError where a device
    has no such weights."""
    if dtype != INT4:
        return False, dtype
    if device.type != "cpu":
        raise UsageError("int4 weights are computed with on a CPU only", hint="use --device cpu, or another --dtype")
    return True, None


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX); elsewhere bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    words = next((line for line in flags.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in words or "amx_bf16" in words


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity mask and the CPU quota of its container, at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = _cpu_quota(cgroup)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def set_threads(parameters: int | None = None) -> int:
    """Give torch the usable cores, fewer for a model of few `parameters`; OMP_NUM_THREADS wins over both.

    A small model's products are over before many threads have shared them out. Returns the threads in use.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        cores = usable_cores()
        torch.set_num_threads(cores if parameters is None else min(cores, max(2, parameters // _THREAD_PARAMETERS)))
    return torch.get_num_threads()


def _cpu_quota(cgroup: Path) -> float | None:
    """CPUs per period granted by cgroup v2 (`cpu.max`) or v1 (`cpu/cpu.cfs_*`), None when unlimited."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        granted = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return None
    return granted if granted > 0 else None
