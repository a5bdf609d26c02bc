"""Which configuration a GPU gets: the table, the cache on disk, timing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frtool.kernels.tuning import (
    KernelConfig,
    candidates,
    early_programs,
    padded_head_dim,
    shipped_apart,
    shipped_config,
    timed_config,
)

OPTIONS = candidates(torch.float16)


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
    assert config.merge_parts & (config.merge_parts - 1) == 0


def test_no_launch_starts_early_without_a_gpu() -> None:
    assert early_programs(torch.device("cpu")) == 0


def test_two_programs_fit_a_multiprocessor_beside_one_of_wide_items() -> None:
    pair = shipped_apart(torch.float16, 128)
    assert pair is not None
    wide, others = pair
    assert wide.max_registers is not None
    assert others.max_registers is not None
    assert 32 * (wide.warps * wide.max_registers + 2 * others.warps * others.max_registers) <= 1 << 16
    assert others.wide_rows == 0
    assert others.group_rows == wide.group_rows


def test_other_gpus_have_none() -> None:
    assert shipped_config(torch.float16, 128, (8, 6)) is None
    assert shipped_config(torch.float32, 256, (8, 6)) is None


def test_heads_are_padded_to_powers_of_two() -> None:
    assert [padded_head_dim(d) for d in (8, 16, 80, 128, 129)] == [16, 16, 128, 128, 256]


def test_the_fastest_candidate_that_runs_is_kept_on_disk(tmp_path: Path) -> None:
    timed: list[KernelConfig] = []

    def time(config: KernelConfig) -> float:
        timed.append(config)
        if config.warps == 8:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 / (1 + config.wide_rows)

    best = timed_config("a GPU", OPTIONS, time)
    assert best.warps == 4
    assert best.wide_rows == 64
    count = len(timed)
    assert timed_config("a GPU", OPTIONS, time) == best
    assert len(timed) == count, "the second call must come from the cache"
    assert timed_config("another GPU", OPTIONS, time) == best
    assert len(timed) == 2 * count
    assert (tmp_path / "triton-tuning.json").exists()


def test_nothing_that_runs_gives_the_fallback() -> None:
    def time(config: KernelConfig) -> float:
        raise RuntimeError("no")

    assert timed_config("a small GPU", OPTIONS, time) == OPTIONS[-1]


def test_a_broken_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "triton-tuning.json").write_text("{")
    assert timed_config("a GPU", OPTIONS, lambda config: 1.0)
    (tmp_path / "triton-tuning.json").write_text('{"a GPU": {"no_such_field": 1}}')
    assert timed_config("a GPU", OPTIONS, lambda config: 1.0)


def test_what_does_not_fit_the_device_is_dropped_and_the_choice_outlives_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from frtool.kernels import triton_tree
    from frtool.kernels.allocator import PhysicalKVAllocator

    pool = PhysicalKVAllocator(4, 16, 2, 128, "cpu", 1, torch.float16)
    pool.device = torch.device("cuda")
    asked: list[KernelConfig] = []

    def time(allocator: PhysicalKVAllocator, heads: int, config: KernelConfig) -> float:
        asked.append(config)
        if config.wide_rows * config.wide_stages > 128:
            raise triton_tree.triton.runtime.errors.OutOfResources(120_000, 101_376, "shared memory")
        return float(config.wide_rows == 0)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a consumer card")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(triton_tree, "_time", time)
    best = triton_tree._config(pool, 8)
    assert best == KernelConfig(64, 32, 2, 32, 2, edge_stages=2, warps=4)
    assert asked == list(OPTIONS)
    assert triton_tree._config(pool, 8) == best
    assert asked == list(OPTIONS), "read from the disk"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_last_candidate_compiles_within_the_memory_of_a_small_gpu(dtype: torch.dtype) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from frtool.kernels import triton_tree
    from frtool.kernels.tree_kernel import tree_attention_kernel as kernel

    config = candidates(dtype)[-1]
    constants = {
        "HEADS": 8, "GROUP": 4, "GROUP_PAD": 4, "D": 256, "D_PAD": 256, "ENTRY": 16, "GROUP_ROWS": 16,
        "WIDE_ROWS": config.wide_rows, "WIDE_KEYS": config.wide_keys, "WIDE_STAGES": config.wide_stages,
        "EDGE_KEYS": config.edge_keys, "EDGE_STAGES": config.edge_stages, "NARROW_KEYS": config.narrow_keys,
        "NARROW_STAGES": config.narrow_stages, "MERGE_ROWS": triton_tree.merge_rows(config),
        "MERGE_PARTS": config.merge_parts, "THREADS": 32 * config.warps, "HAS_WINDOW": False, "HAS_SOFTCAP": False,
        "HAS_SINKS": False, "MERGES": False, "EARLY": 0, "BEHIND": False,
    }  # fmt: skip
    element = {torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    kinds = dict.fromkeys(("q", "k_cache", "v_cache", "out", "partial"), element)
    kinds |= {"partial_lse": "*fp32", "sinks": "*fp32", "entry_mark": "*i64", "scale": "fp32", "softcap": "fp32"}
    tables = ("arrivals", "items", "entry_block", "query_token", "query_pos")
    kinds |= dict.fromkeys(tables, "*i32") | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    assert set(constants) == {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    source = ASTSource(
        kernel, {name: kinds.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kinds.get(name, "i32")[0] == "*"},
    )  # fmt: skip
    compiled = triton.compile(source, target=GPUTarget("cuda", 86, 32), options={"num_warps": config.warps})
    assert compiled.metadata.shared <= 64 << 10
