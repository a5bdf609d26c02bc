"""The machine: cores, memory, accelerators, and whether the attention kernel computes what it should on them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator

from .check import FAILED, NOTE, OK, WARNING, Check
from .versions import installed

TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
"""fp32 on a CPU, fp16 on a GPU, against fp64."""
_PATIENCE = 180


def check_machine() -> Iterator[Check]:
    """Cores, memory and devices, as far as torch can be imported."""
    try:
        import torch
    except Exception as error:
        yield Check("torch import", FAILED, f"{type(error).__name__}: {error}", hint="reinstall torch")
        return
    from frtool.models.devices import cpu_has_bf16, usable_cores
    from frtool.models.memory import free_host_memory, size_text

    cores = usable_cores()
    bf16 = "bf16 in hardware" if cpu_has_bf16() else "no bf16 in hardware: fp32 is used"
    yield Check("processor", OK, f"{processor()}, {cores} usable core{'s' * (cores != 1)}, {bf16}")
    free = free_host_memory()
    yield Check("memory", OK if free > 2e9 else WARNING, f"{size_text(free)} free" if free < 1 << 61 else "unknown")
    if not torch.cuda.is_available():
        why = "" if torch.version.cuda else ", and this torch has no CUDA"
        yield Check("GPU", NOTE, f"none{why}: searches run on the CPU")
        return
    for i in range(torch.cuda.device_count()):
        try:
            left, total = torch.cuda.mem_get_info(i)
            major, minor = torch.cuda.get_device_capability(i)
            text = f"{torch.cuda.get_device_name(i)}, sm_{major}{minor}, {size_text(left)} of {size_text(total)} free"
            yield Check(f"GPU {i}", OK, text)
        except RuntimeError as error:
            yield Check(f"GPU {i}", FAILED, " ".join(str(error).split())[:200], hint="another program may hold it")


def check_kernel() -> Iterator[Check]:
    """The torch path, the Triton kernel in its interpreter, and on the GPU where there is one, each in a process."""
    yield _selftest("attention in torch", "torch", "cpu")
    if installed("triton") is None:
        yield Check("Triton kernel", NOTE, "triton is not installed: the torch path is used")
        return
    yield _selftest("Triton kernel, interpreted", "triton", "cpu")
    try:
        import torch

        on_gpu = torch.cuda.is_available()
    except Exception:
        return
    if on_gpu:
        yield _selftest("Triton kernel on the GPU", "triton", "cuda")


def _selftest(name: str, backend: str, device: str) -> Check:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if backend == "triton" and device == "cpu":
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "frtool.doctor.selftest", backend, device]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=env, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name, FAILED, f"no result within {_PATIENCE} s")
    except OSError as error:
        return Check(name, FAILED, f"could not be started: {error.strerror}")
    try:
        distance = float(json.loads(done.stdout.splitlines()[-1])["distance"])
    except (ValueError, IndexError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Check(name, FAILED, said[:300], hint="`python -m frtool.doctor.selftest` shows the whole error")
    right = distance <= TOLERANCE[device]
    return Check(name, OK if right else FAILED, f"within {distance:.1g} of the fp64 reference")


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, "") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
