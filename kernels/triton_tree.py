"""The Triton backend: plans in device buffers and the launch of `tree_kernel`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import triton

from .allocator import PhysicalKVAllocator
from .cost import CostRule, TileShape, fitted_rule
from .plan import TreePlan, plan_tree
from .schedule import ITEM_FIELDS, Schedule, grown, schedule_tree
from .tree_kernel import tree_attention_kernel
from .tuning import (
    KernelConfig,
    candidates,
    merge_rows,
    multiprocessors,
    padded_head_dim,
    shipped_config,
    timed_config,
)

_TABLES = ("items", "entry_block", "entry_mark", "query_token", "query_pos")
_MAX_GROUP = 16


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on any device: TRITON_INTERPRET=1 was set when this was imported."""
    return not isinstance(tree_attention_kernel, triton.JITFunction)


class _Launch:
    """A schedule for one number of query heads, in device buffers of fixed capacity.

    Captured graphs hold the buffers' addresses and the capacity's grid: as long as `load` returns True they stay valid.
    """

    def __init__(self, allocator: PhysicalKVAllocator, group: int, config: KernelConfig, rule: CostRule) -> None:
        self.config = config
        self.rule = rule
        self.heads = allocator.num_kv_heads
        self.group_pad = 1 << (group - 1).bit_length()
        self.entry = _entry_size(allocator.block_size, config)
        self.shape = TileShape(
            config.group_rows // self.group_pad, config.wide_rows // config.group_rows, config.wide_keys,
            config.narrow_keys, self.entry, max(merge_rows(config) // config.group_rows, 1),
        )  # fmt: skip
        self._device = allocator.device
        self._dtype = allocator.dtype
        self._width = padded_head_dim(allocator.head_dim)
        # What the kernel reads past the end: the next round's entries, a tile of queries.
        entries = 2 * max(config.wide_keys, config.narrow_keys) // self.entry + 2
        queries = max(config.wide_rows, config.group_rows)
        self._spare = {"query_token": queries, "query_pos": queries}
        self._spare |= {"entry_block": entries, "entry_mark": 2 * entries}
        self._capacity: dict[str, int] = {}
        self.item_capacity = 0
        self.partial: torch.Tensor
        self.arrivals: torch.Tensor
        self._loaded: tuple[Schedule, TreePlan] | None = None

    def load(self, tree: TreePlan) -> bool:
        """Schedule `tree` and copy it to the device; False if the buffers had to grow."""
        schedule = None
        if self._loaded is not None:
            schedule = grown(*self._loaded, tree, self.entry)
        if schedule is None:
            schedule = schedule_tree(tree, self.shape, self.heads, self.rule)
        self._loaded = (schedule, tree)
        self.num_items = len(schedule.items)
        sizes = {name: getattr(schedule, name).nbytes // 4 for name in _TABLES}
        fits = bool(self._capacity) and all(sizes[n] <= self._capacity[n] for n in _TABLES)
        fits = fits and schedule.num_slots <= len(self.partial) and schedule.num_groups <= len(self.arrivals)
        if not fits:
            self._allocate(schedule, sizes)
        self._host[:] = 0
        self._views["query_token"][:] = -1
        for name in _TABLES:
            self._views[name][: sizes[name]] = getattr(schedule, name).ravel().view(np.int32)
        staging = torch.from_numpy(self._host)
        if self._device.type == "cuda":
            staging = staging.pin_memory()  # the caching host allocator keeps it until the copy is done
        self._buffer.copy_(staging, non_blocking=True)
        return fits

    def _allocate(self, schedule: Schedule, sizes: dict[str, int]) -> None:
        # Never less than before, or graphs of a tree that sways would go stale again and again. Tables grow with every
        # token, and room in them costs nothing; room for items is paid for with programs that find nothing to do.
        slots, groups = (len(self.partial), len(self.arrivals)) if self._capacity else (0, 0)
        self._capacity = {n: max(size + size // 2 + 256, self._capacity.get(n, 0)) for n, size in sizes.items()}
        self.item_capacity = max(len(schedule.items) + max(len(schedule.items) // 4, 32), self.item_capacity)
        self._capacity["items"] = self.item_capacity * ITEM_FIELDS
        starts = {}
        total = 0
        for name in _TABLES:
            starts[name] = total
            total += -(-(self._capacity[name] + self._spare.get(name, 0)) // 32) * 32
        self._host = np.zeros(total, np.int32)
        self._buffer = torch.zeros(total, dtype=torch.int32, device=self._device)
        ends = [*list(starts.values())[1:], total]
        self._views = {n: self._host[a:b] for (n, a), b in zip(starts.items(), ends, strict=True)}
        self.tables = {n: self._buffer[a:b] for (n, a), b in zip(starts.items(), ends, strict=True)}
        self.tables["entry_mark"] = self.tables["entry_mark"].view(torch.int64)
        slots = max(schedule.num_slots + max(schedule.num_slots // 4, 64), slots)
        groups = max(schedule.num_groups + max(schedule.num_groups // 4, 64), groups)
        shape = (slots, self.heads, self.config.group_rows)
        self.partial = torch.empty(*shape, self._width, dtype=self._dtype, device=self._device)
        self.partial_lse = torch.empty(shape, dtype=torch.float32, device=self._device)
        self.arrivals = torch.zeros(groups, self.heads, dtype=torch.int32, device=self._device)


def _entry_size(block_size: int, config: KernelConfig) -> int:
    """The largest part of a block that fits a round of every kind."""
    most = min(config.narrow_keys, config.wide_keys, config.edge_keys)
    return max(size for size in range(1, most + 1) if block_size % size == 0)


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
        self._launches: dict[int, _Launch] = {}

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

    def launch_for(self, q_heads: int, config: KernelConfig | None = None, rule: CostRule | None = None) -> _Launch:
        """The schedule for `q_heads`, made at the first call. `config` and `rule` replace those of the tuning table."""
        launch = self._launches.get(q_heads)
        if launch is None or config is not None or rule is not None:
            group = q_heads // self._allocator.num_kv_heads
            if group > _MAX_GROUP:
                raise ValueError(f"{group} query heads to a kv head is over the kernel's limit of {_MAX_GROUP}")
            if self._allocator.head_dim > 256:
                raise ValueError(f"head_dim {self._allocator.head_dim} is over the kernel's limit of 256")
            config = config or _config(self._allocator, q_heads)
            if rule is None:
                head_bytes = padded_head_dim(self._allocator.head_dim) * self._allocator.k_cache.element_size()
                rule = fitted_rule(group, multiprocessors(self._allocator.device), head_bytes / 256)
            launch = self._launches[q_heads] = _Launch(self._allocator, group, config, rule)
            launch.load(self._tree)
        return launch


def plan_triton(allocator: PhysicalKVAllocator, tree: TreePlan) -> TritonPlan:
    """Plan `tree` for the GPU. Raises ValueError where there is none."""
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
    launch = plan.launch_for(q_heads)
    if scale <= 0:  # the kernel takes its maximum before it scales
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)
    q = q.to(allocator.dtype)
    if q.stride(2) != 1:
        q = q.contiguous()
    result = out if out.stride(2) == 1 else torch.empty_like(out, memory_format=torch.contiguous_format)
    capturing = q.is_cuda and torch.cuda.is_current_stream_capturing()
    items = launch.item_capacity if capturing else launch.num_items
    config, tables = launch.config, launch.tables
    tree_attention_kernel[(items * launch.heads,)](
        q, allocator.k_cache[layer], allocator.v_cache[layer], result, launch.partial, launch.partial_lse,
        launch.arrivals, launch.partial_lse if sinks is None else sinks,
        *(tables[name] for name in _TABLES),
        q.stride(0), q.stride(1), result.stride(0), result.stride(1),
        scale, 0.0 if softcap is None else softcap, 0 if window is None else window,
        HEADS=launch.heads, GROUP=q_heads // launch.heads, GROUP_PAD=launch.group_pad, D=head_dim,
        D_PAD=padded_head_dim(head_dim), ENTRY=launch.entry, GROUP_ROWS=config.group_rows,
        WIDE_ROWS=config.wide_rows, WIDE_KEYS=config.wide_keys, WIDE_STAGES=config.wide_stages,
        EDGE_KEYS=config.edge_keys, EDGE_STAGES=config.edge_stages, NARROW_KEYS=config.narrow_keys,
        NARROW_STAGES=config.narrow_stages,
        MERGE_ROWS=merge_rows(config), MERGE_STAGES=config.merge_stages,
        THREADS=32 * config.warps, HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None, HAS_SINKS=sinks is not None,
        num_warps=config.warps, maxnreg=config.max_registers,
    )  # fmt: skip
    return result if result is out else out.copy_(result)


def _config(allocator: PhysicalKVAllocator, q_heads: int) -> KernelConfig:
    device = allocator.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    shipped = shipped_config(allocator.dtype, allocator.head_dim, capability)
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
