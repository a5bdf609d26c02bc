"""Which configuration a GPU gets: the table, the cache on disk, timing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frtool.kernels.tuning import FALLBACK, KernelConfig, padded_head_dim, shipped_config, timed_config


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FRTOOL_CACHE", str(tmp_path))


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_hopper_has_a_shipped_config_for_every_head(head_dim: int, dtype: torch.dtype) -> None:
    config = shipped_config(dtype, head_dim, (9, 0))
    assert config is not None
    assert config.wide_rows % config.group_rows == 0
    assert config.wide_rows // config.group_rows <= 8


def test_other_gpus_have_none() -> None:
    assert shipped_config(torch.float16, 128, (8, 6)) is None


def test_heads_are_padded_to_powers_of_two() -> None:
    assert [padded_head_dim(d) for d in (8, 16, 80, 128, 129)] == [16, 16, 128, 128, 256]


def test_the_fastest_candidate_that_runs_is_kept_on_disk(tmp_path: Path) -> None:
    timed: list[KernelConfig] = []

    def time(config: KernelConfig) -> float:
        timed.append(config)
        if config.warps == 8:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 / (1 + config.wide_rows)

    best = timed_config("a GPU", time)
    assert best.warps == 4
    assert best.wide_rows == 64
    count = len(timed)
    assert timed_config("a GPU", time) == best
    assert len(timed) == count, "the second call must come from the cache"
    assert timed_config("another GPU", time) == best
    assert len(timed) == 2 * count
    assert (tmp_path / "triton-tuning.json").exists()


def test_nothing_that_runs_gives_the_fallback() -> None:
    def time(config: KernelConfig) -> float:
        raise RuntimeError("no")

    assert timed_config("a small GPU", time) == FALLBACK


def test_a_broken_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "triton-tuning.json").write_text("{")
    assert timed_config("a GPU", lambda config: 1.0)
    (tmp_path / "triton-tuning.json").write_text('{"a GPU": {"no_such_field": 1}}')
    assert timed_config("a GPU", lambda config: 1.0)
