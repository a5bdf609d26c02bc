from __future__ import annotations

import torch

from frtool.bench.allocator import CYCLES_TARGET, run_allocator_benchmark


def test_the_benchmark_measures_the_asked_cycle_and_says_whether_it_reaches_the_target():
    threads = torch.get_num_threads()
    rows = run_allocator_benchmark(seconds=0.05, rounds=2)
    asked = rows[0]
    assert (asked.shared_blocks, asked.branches, asked.target) == (128, 1, CYCLES_TARGET)
    assert asked.reached == (asked.cycles_per_second >= 50_000)
    assert all(row.cycles_per_second > 0 for row in rows)
    assert torch.get_num_threads() == threads
