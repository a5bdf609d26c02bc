"""How many branches a second the allocator can fork, grow by one token and free: the bookkeeping of a search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

CYCLES_TARGET = 50_000
"""Cycles a second on one core over 128 shared blocks that the allocator must reach."""


@dataclass(frozen=True, slots=True)
class AllocatorRow:
    """One measured case, the best of its rounds."""

    case: str
    shared_blocks: int
    branches: int
    """Branches that one cycle forks, grows and frees."""
    cycles_per_second: float
    """Branch cycles: a call for 64 branches counts 64."""
    target: int | None
    """What `cycles_per_second` must reach; None where nothing is asked."""

    @property
    def reached(self) -> bool:
        return self.target is None or self.cycles_per_second >= self.target


def run_allocator_benchmark(*, seconds: float = 1.0, rounds: int = 5) -> list[AllocatorRow]:
    """Measure each case for about `seconds`, in `rounds` rounds, on one thread. Nothing is warm but the code."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            _row("fork + append + free", 128, 1, 0, CYCLES_TARGET, seconds, rounds),
            _row("fork + append + free", 1024, 1, 0, None, seconds, rounds),
            _row("fork + append with a copied tail + free", 128, 1, 8, None, seconds, rounds),
            _row("64 forks + one append_many + 64 frees", 128, 64, 0, None, seconds, rounds),
        ]
    finally:
        torch.set_num_threads(threads)


def _row(
    case: str, shared_blocks: int, branches: int, tail: int, target: int | None, seconds: float, rounds: int
) -> AllocatorRow:
    from frtool.kernels.allocator import PhysicalKVAllocator

    size = 16
    allocator = PhysicalKVAllocator(shared_blocks + branches + 1, size, num_kv_heads=8, head_dim=128)
    root = allocator.alloc_branch(shared_blocks * size + tail).branch_id
    ones = [1] * branches

    def one() -> None:
        child = allocator.fork(root).branch_id
        allocator.append(child)
        allocator.free_branch(child)

    def many() -> None:
        children = [allocator.fork(root).branch_id for _ in ones]
        allocator.append_many(children, ones)
        for child in children:
            allocator.free_branch(child)

    rate = _rate(one if branches == 1 else many, seconds, rounds) * branches
    allocator.check()
    return AllocatorRow(case, shared_blocks, branches, rate, target)


def _rate(cycle: Callable[[], None], seconds: float, rounds: int) -> float:
    """Calls a second of this thread's own time on its core, in the best round: the others were disturbed."""
    count, spent = 1, 0.0
    while spent < seconds / rounds / 4:
        count *= 2
        spent = _spent(cycle, count)
    count = max(int(count * seconds / rounds / spent), 1)
    return count / min(_spent(cycle, count) for _ in range(rounds))


def _spent(cycle: Callable[[], None], count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        cycle()
    return time.thread_time() - start
