"""The device, the number format, the cores and the memory that are really there, also inside a container."""

from __future__ import annotations

import os

import pytest
import torch

from frtool.errors import ModelError, UsageError
from frtool.models import devices, memory

CPU = torch.device("cpu")


def test_a_cpu_quota_limits_the_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert devices.usable_cores(tmp_path) == 1


def test_an_unlimited_quota_leaves_the_affinity_mask(tmp_path):
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert devices.usable_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_the_quota_of_the_first_control_groups(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert devices.usable_cores(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert devices.usable_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_the_number_of_threads_asked_for_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    before = torch.get_num_threads()
    assert devices.set_threads() == before


def test_a_small_model_takes_few_threads_and_a_large_one_all_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices, "usable_cores", lambda: 3)
    before = torch.get_num_threads()
    try:
        assert devices.set_threads(20_000_000) == 2
        assert devices.set_threads(1_000_000_000) == 3
        assert devices.set_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_small_models_stay_in_fp32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    assert devices.choose_dtype(None, CPU, 5_000_000) == torch.float32
    assert devices.choose_dtype("auto", CPU, 20_000_000) == torch.bfloat16
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: False)
    assert devices.choose_dtype(None, CPU, 1_000_000_000) == torch.float32


def test_a_number_format_by_name_or_by_type():
    assert devices.choose_dtype("fp16", CPU, 1) == torch.float16
    assert devices.choose_dtype(torch.bfloat16, CPU, 1) == torch.bfloat16
    with pytest.raises(UsageError):
        devices.choose_dtype(torch.int8, CPU, 1)


def test_memory_is_the_smaller_of_machine_and_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    group = tmp_path / "group"
    group.mkdir()
    assert memory.free_host_memory(group, meminfo) == 3000 * 1024
    (group / "memory.max").write_text("2000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 600000\ninactive_file 300000\n")
    assert memory.free_host_memory(group, meminfo) == 1_400_000
    (group / "memory.max").write_text("max\n")
    assert memory.free_host_memory(group, meminfo) == 3000 * 1024


def test_no_known_limit_is_no_limit(tmp_path):
    assert memory.free_host_memory(tmp_path, tmp_path / "none") >= 1 << 60


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 8_000_000_000)
    memory.require_memory("m", 7_000_000_000, CPU)
    with pytest.raises(ModelError, match=r"m needs 16\.1 GB for its weights, cpu has 8\.0 GB free") as caught:
        memory.require_memory("m", 16_100_000_000, CPU)
    assert caught.value.hint is not None
    assert "up to 3.9 B parameters with --dtype bfloat16" in caught.value.hint
