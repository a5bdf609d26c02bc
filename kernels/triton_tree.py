"""The Triton backend: plans in device buffers and the launch of `tree_kernel`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import triton

from .allocator import PhysicalKVAllocator
from .cost import CostRule, fitted_rule, fitted_rule_apart
from .heap import keep_freed_memory
from .launch import TABLES, Apart, Launch
from .plan import TreePlan, plan_tree
from .specialized import KEYS, SpecializedRule, entry_size
from .tree_kernel import tree_attention_kernel, wide_attention_kernel
from .tuning import (
    KernelConfig,
    candidates,
    early_programs,
    merge_rows,
    multiprocessors,
    padded_head_dim,
    shipped_apart,
    shipped_config,
    timed_config,
)

_LOG = logging.getLogger(__name__)
_MAX_GROUP = 16
_SPECIALIZED_CONSTANTS = ("HEADS", "GROUP", "GROUP_PAD", "D", "ENTRY", "HAS_SOFTCAP", "HAS_SINKS")
_LEAST_APART = 240.0
"""Keys a multiprocessor, see `shared_load`: from there on two launches were faster on an H100."""


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on any device: TRITON_INTERPRET=1 was set when this was imported."""
    return not isinstance(tree_attention_kernel, triton.JITFunction)


class TritonPlan:
    """A tree scheduled for the GPU. Work buffers belong to the plan: use one plan on one stream at a time.

    `update` follows growth, forks and prunes in place. While it returns True, captured graphs that use the plan stay
    valid: replay them with q of the same number of rows, of which the first `num_queries` are attended.
    """

    backend = "triton"

    def __init__(self, allocator: PhysicalKVAllocator, tree: TreePlan) -> None:
        if allocator.device.type != "cuda" and not interpreting():
            raise ValueError(f"backend 'triton' needs a CUDA device, the pool is on {allocator.device}; use 'torch'")
        self._allocator = allocator
        self._tree = tree
        self._launches: dict[tuple[int, bool], Launch] = {}

    @property
    def branch_ids(self) -> tuple[int, ...]:
        return self._tree.branch_ids

    @property
    def num_queries(self) -> int:
        return self._tree.num_queries

    def update(self, tree: TreePlan | None = None) -> bool:
        """Follow the branches as they are now (or `tree`): one host-to-device copy, ordered on the current stream.

        Cheap where branches only grew inside their last blocks. Returns False where device buffers had to be replaced
        by larger ones: captured graphs are then stale.
        """
        if tree is None:
            tree = self._follow()
        self._tree = tree
        fits = [launch.load(tree) for launch in self._launches.values()]
        return all(fits)

    def _follow(self) -> TreePlan:
        ids, tree = self._tree.branch_ids, self._tree
        tables = self._allocator.block_tables(ids)
        if np.array_equal(tables, tree.tables):
            return replace(tree, lengths=self._allocator.lengths(ids).astype(np.int32))
        return plan_tree(self._allocator, ids, tree.q_lens.tolist())

    def launch_for(
        self, q_heads: int, config: KernelConfig | None = None, rule: CostRule | None = None, *, windowed: bool = False
    ) -> Launch:
        """The schedule for `q_heads`, made at the first call; another one with a sliding window where trees may be for
        `specialized_kernel`, which has none. `config` and `rule` replace those of the tuning table, and are for
        `tree_kernel`."""
        group = q_heads // self._allocator.num_kv_heads
        windowed = windowed and _can_specialize(self._allocator, group)
        launch = self._launches.get((q_heads, windowed))
        if launch is None or config is not None or rule is not None:
            if group > _MAX_GROUP:
                raise ValueError(f"{group} query heads to a kv head is over the kernel's limit of {_MAX_GROUP}")
            if self._allocator.head_dim > 256:
                raise ValueError(f"head_dim {self._allocator.head_dim} is over the kernel's limit of 256")
            specialized = None
            if config is None and rule is None and not windowed and _can_specialize(self._allocator, group):
                specialized = SpecializedRule(multiprocessors(self._allocator.device))
            config = config or _config(self._allocator, q_heads)
            launch = self._launches[q_heads, windowed] = self._launch(group, config, rule, specialized)
            launch.load(self._tree)
        return launch

    def _launch(
        self, group: int, config: KernelConfig, rule: CostRule | None, specialized: SpecializedRule | None
    ) -> Launch:
        pool = self._allocator
        units = multiprocessors(pool.device)
        scale = padded_head_dim(pool.head_dim) * pool.k_cache.element_size() / 256
        apart = None
        if config == shipped_config(pool.dtype, pool.head_dim, _capability(pool.device)) and 1 < group < 8:
            pair = shipped_apart(pool.dtype, pool.head_dim)
            apart = None if pair is None else Apart(*pair, rule or fitted_rule_apart(group, units, scale), _LEAST_APART)
        rule = rule or fitted_rule(group, units, scale, config.pairs)
        return Launch(pool, group, config, rule, apart, specialized)


def plan_triton(allocator: PhysicalKVAllocator, tree: TreePlan) -> TritonPlan:
    """Plan `tree` for the GPU. Raises ValueError where there is none."""
    keep_freed_memory()
    return TritonPlan(allocator, tree)


def attend_triton(
    q: torch.Tensor,
    allocator: PhysicalKVAllocator,
    plan: TritonPlan,
    *,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """q, out `[T, Hq, D]`, T at least the plan's queries (rows after them are left as they are). Returns `out`."""
    tokens, q_heads, head_dim = q.shape
    if tokens < plan.num_queries:
        raise ValueError(f"q has {tokens} tokens but the branches ask with {plan.num_queries}")
    launch = plan.launch_for(q_heads, windowed=window is not None)
    if scale <= 0:  # the kernel takes its maximum before it scales
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)
    q = q.to(allocator.dtype)
    if q.stride(2) != 1:
        q = q.contiguous()
    result = out if out.stride(2) == 1 else torch.empty_like(out, memory_format=torch.contiguous_format)
    capturing = q.is_cuda and torch.cuda.is_current_stream_capturing()
    items = launch.item_capacity if capturing else launch.num_items
    tables = launch.tables
    arguments = (
        q, allocator.k_cache[layer], allocator.v_cache[layer], result, launch.partial, launch.partial_lse,
        launch.arrivals, launch.partial_lse if sinks is None else sinks,
    )  # fmt: skip
    reads = tuple(tables[name] for name in TABLES)
    settings = (
        q.stride(0), q.stride(1), result.stride(0), result.stride(1), scale, 0.0 if softcap is None else softcap,
    )  # fmt: skip
    numbers = (*reads, *settings, 0 if window is None else window)
    constants = {
        "HEADS": launch.heads, "GROUP": q_heads // launch.heads, "GROUP_PAD": launch.group_pad, "D": head_dim,
        "D_PAD": padded_head_dim(head_dim), "ENTRY": launch.entry, "GROUP_ROWS": launch.configs[1].group_rows,
        "HAS_WINDOW": window is not None, "HAS_SOFTCAP": softcap is not None, "HAS_SINKS": sinks is not None,
    }  # fmt: skip
    early = early_programs(q.device)
    if launch.specialized:
        programs = items * launch.heads
        starts_early = programs <= early
        _specialized()[(programs,)](
            q, *_descriptors(arguments[1], arguments[2], launch.entry), *arguments[3:], tables["items"],
            *reads[: TABLES.index("query_token")], *settings, KEYS=KEYS, SHARED_STAGES=3, MASKED_STAGES=2,
            HAS_OWN=launch.spreads, EARLY=starts_early, num_warps=4, launch_pdl=starts_early,
            **{name: constants[name] for name in _SPECIALIZED_CONSTANTS},
        )  # fmt: skip
        return result if result is out else out.copy_(result)
    beside = launch.apart and early > 0
    wide, config = launch.configs
    if launch.apart:
        wide_attention_kernel[(multiprocessors(allocator.device),)](
            *arguments, tables["wide_items"], tables["wide_count"], *numbers, **constants, **_wide_sizes(wide),
            EARLY=beside, num_warps=wide.warps, maxnreg=wide.max_registers, launch_pdl=beside,
        )  # fmt: skip
    if not items:
        return result if result is out else out.copy_(result)
    programs = items * launch.heads
    roomy = programs <= config.roomy * multiprocessors(allocator.device)
    tree_attention_kernel[(programs,)](
        *arguments, tables["items"], *numbers, **constants, **_wide_sizes(config), NARROW_KEYS=config.narrow_keys,
        NARROW_STAGES=config.narrow_stages, MERGE_ROWS=merge_rows(config), MERGE_PARTS=config.merge_parts,
        MERGES=launch.apart or config.wide_rows > 0, EARLY=0 if beside else early, BEHIND=beside,
        num_warps=config.warps, maxnreg=None if roomy else config.max_registers, launch_pdl=early > 0,
    )  # fmt: skip
    return result if result is out else out.copy_(result)


@cache
def _specialized() -> Any:
    """`specialized_attention_kernel`; None with another Triton than 3.6: what Gluon offers changes with the version."""
    if not triton.__version__.startswith("3.6."):
        _LOG.info("the specialized kernel is written for Triton 3.6, not %s", triton.__version__)
        return None
    from .specialized_kernel import specialized_attention_kernel

    return specialized_attention_kernel


def _can_specialize(pool: PhysicalKVAllocator, group: int) -> bool:
    return (
        _capability(pool.device) == (9, 0)
        and not interpreting()
        and pool.head_dim == 128
        and pool.dtype != torch.float32
        and 1 < group < 8
        and entry_size(pool.block_size) >= 16
        and _specialized() is not None
    )


def _descriptors(k_cache: torch.Tensor, v_cache: torch.Tensor, entry: int) -> list[Any]:
    """How the bulk copies of `specialized_kernel` address K and V of a layer: half a head's entry at once."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return [
        TensorDescriptor.from_tensor(cache.flatten(2).flatten(0, 1), [entry, 64], layout)
        for cache in (k_cache, v_cache)
    ]


def _wide_sizes(config: KernelConfig) -> dict[str, int]:
    return {
        "WIDE_ROWS": config.wide_rows, "WIDE_KEYS": config.wide_keys, "WIDE_STAGES": config.wide_stages,
        "EDGE_KEYS": config.edge_keys, "EDGE_STAGES": config.edge_stages, "THREADS": 32 * config.warps,
    }  # fmt: skip


def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def _config(allocator: PhysicalKVAllocator, q_heads: int) -> KernelConfig:
    device = allocator.device
    shipped = shipped_config(allocator.dtype, allocator.head_dim, _capability(device))
    if shipped is not None:
        return shipped
    options = candidates(allocator.dtype)
    if torch.cuda.is_current_stream_capturing():
        return options[-1]
    key = "/".join(
        str(x) for x in (torch.cuda.get_device_name(device), triton.__version__, allocator.dtype,
                         padded_head_dim(allocator.head_dim), q_heads // allocator.num_kv_heads)
    )  # fmt: skip
    return timed_config(key, options, lambda config: _time(allocator, q_heads, config))


@dataclass(frozen=True, slots=True)
class _Trial:
    """The tree that configs are timed on: a shared prompt and private tails."""

    prefix: int = 1024
    suffix: int = 64
    branches: int = 64


def _time(allocator: PhysicalKVAllocator, q_heads: int, config: KernelConfig, trial: _Trial = _Trial()) -> float:
    """Seconds a call of `config` on a small pool like `allocator`."""
    size = allocator.block_size
    tokens = trial.prefix + trial.branches * (trial.suffix + 2 * size)
    pool = PhysicalKVAllocator(
        tokens // size + trial.branches, size, allocator.num_kv_heads, allocator.head_dim, allocator.device, 1,
        allocator.dtype,
    )  # fmt: skip
    pool.kv_cache.normal_()
    root = pool.alloc_branch(trial.prefix)
    leaves = [pool.alloc_branch(trial.prefix + trial.suffix, root.branch_id).branch_id for _ in range(trial.branches)]
    plan = plan_triton(pool, plan_tree(pool, leaves))
    plan.launch_for(q_heads, config)
    q = torch.randn(trial.branches, q_heads, pool.head_dim, dtype=pool.dtype, device=pool.device)
    out = torch.empty_like(q)

    def call() -> None:
        attend_triton(q, pool, plan, layer=0, scale=pool.head_dim**-0.5, window=None, softcap=None, sinks=None, out=out)

    call()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(10):
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return float(np.median(times)) / 1e3


__all__ = ["TritonPlan", "attend_triton", "interpreting", "plan_triton"]
