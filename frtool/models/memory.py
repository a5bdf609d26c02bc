"""How much memory is really free, and whether a model fits into it."""

from __future__ import annotations

from pathlib import Path

import torch

from frtool.errors import ModelError

# Activations, allocator slack and the runtime itself, on top of the weights.
HEADROOM_BYTES = 128 << 20


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on `device` now. On a CPU the container's limit counts, not only the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_memory()


def free_host_memory(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of host memory available: the smaller of the machine's and the control group's rest."""
    limits = [left for left in (_machine_left(meminfo), _cgroup_left(cgroup)) if left is not None]
    return max(0, min(limits)) if limits else 1 << 62


def require_memory(name: str, needed: int, device: torch.device) -> None:
    """Raise ModelError with both numbers when `needed` bytes of weights do not fit on `device`."""
    free = free_memory(device)
    if needed + HEADROOM_BYTES > free:
        most = _parameters_text((free - HEADROOM_BYTES) // 2)
        raise ModelError(
            f"{name} needs {size_text(needed)} for its weights, {device} has {size_text(free)} free",
            hint=f"here fit up to {most} parameters with --dtype bfloat16, half as many with float32; "
            "or take a device with more memory",
        )


def _parameters_text(count: int) -> str:
    return f"{max(count, 0) / 1e9:.1f} B" if count >= 1e9 else f"{max(count, 0) / 1e6:.0f} M"


def size_text(count: int) -> str:
    """`count` bytes in decimal megabytes or gigabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _machine_left(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    available = fields.get("MemAvailable")
    return int(available.split()[0]) * 1024 if available else None


def _cgroup_left(cgroup: Path) -> int | None:
    """Limit minus use, where reclaimable file cache does not count as use. None when there is no limit."""
    for limit_file, used_file, stat_file, cache_key in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            limit = (cgroup / limit_file).read_text().strip()
            used = int((cgroup / used_file).read_text())
            stat = (cgroup / stat_file).read_text()
        except (OSError, ValueError):
            continue
        if not limit.isdigit() or int(limit) >= 1 << 60:
            return None
        cache = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[:1] == [cache_key]), 0)
        return int(limit) - used + cache
    return None
