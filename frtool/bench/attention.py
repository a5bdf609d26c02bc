"""`frtool bench attention`: tree attention beside linear attention and other libraries, on the same trees."""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from frtool.bench.attention_baselines import BASELINES, Unavailable, linear_plan, missing
from frtool.bench.attention_cases import TreeCase, build_case, fasttree_cases, search_case, shared_prompt_case
from frtool.bench.attention_timing import Machine, describe_machine, rotating_sets, time_calls
from frtool.files import save_text
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.attention import tree_attention
from frtool.kernels.plan import TreePlan, plan_tree

SUITES = ("seed", "fasttree", "search")
_ERROR_QUERIES = 16
_PLANS = 32


@dataclass(frozen=True, slots=True)
class AttentionSettings:
    """What is measured: layer shapes, storage, which trees."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_size: int | None
    """None: 16, or 8 on trees where a run of tokens is no multiple of 16."""
    suite: str
    prefix: int
    """Tokens that all branches share; 0: nothing is shared."""
    suffix: int


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One tree. Times in microseconds a call, one layer, KV cold; None where a figure could not be taken."""

    case: str
    batch: int
    tree_us: float
    linear_shared_us: float | None
    """The same kernel, every branch reading its whole path through the same pages."""
    linear_copied_us: float | None
    """torch SDPA over a copy of every branch's path: the `sdpa` baseline."""
    peers_us: dict[str, float | None]
    speedup: float | None
    """Over linear attention on copied KV, or on shared pages where that was not measured."""
    kv_bytes: int
    kv_bytes_unshared: int
    """K and V of a layer: stored once, and one copy a branch. From the allocator's counters."""
    bandwidth: float
    """Bytes a second: unique K and V, queries and outputs over the time."""
    floor_us: float
    error: float
    """Relative error to fp64, of a sample of the queries."""
    plan_us: float
    """Of the host: a plan of the tree for all layers after a branch was pruned and another one forked, the copy of its
    tables begun."""

    @property
    def over_floor(self) -> float:
        return self.tree_us / self.floor_us

    @property
    def saved(self) -> float:
        """Part of the unshared KV memory that sharing saves."""
        return 1 - self.kv_bytes / self.kv_bytes_unshared


@dataclass(frozen=True, slots=True)
class AttentionReport:
    machine: Machine
    date: str
    backend: str
    settings: AttentionSettings
    rows: list[AttentionRow]
    notes: list[str] = field(default_factory=list)
    """What was left out and why, a line each."""

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        for row, plain in zip(self.rows, data["rows"], strict=True):
            plain |= {"over_floor": row.over_floor, "saved": row.saved}
        return data

    def write(self, path: Path) -> None:
        save_text(path, json.dumps(self.to_dict(), indent=1) + "\n")


def run(
    *,
    batch_sizes: Sequence[int] | None = None,
    prefix: int | None = None,
    suffix: int | None = None,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    dtype: str | None = None,
    block_size: int | None = None,
    suite: str = "seed",
    baselines: Sequence[str] = ("sdpa",),
    device: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> AttentionReport:
    """Measure the trees of `suite`. What is None follows the machine: on a GPU batches 1 to 256 of 2048 + 64 tokens in
    fp16, on a CPU fewer and smaller ones in fp32.

    `baselines`: any of `BASELINES`. `on_progress` gets a line before each step. Raises ValueError for settings that do
    not fit together.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.startswith("cuda")
    dtype = dtype or ("float16" if gpu else "float32")
    batch_sizes = list(batch_sizes or ((1, 16, 64, 128, 256) if gpu else (1, 8, 32)))
    if prefix is None:
        prefix = 2048 if gpu else 512
    suffix = suffix or (64 if gpu else 32)
    _check(batch_sizes, prefix, suffix, heads, kv_heads, head_dim, dtype, block_size, suite, baselines)
    settings = AttentionSettings(heads, kv_heads, head_dim, dtype, block_size, suite, prefix, suffix)
    progress = on_progress or (lambda line: None)
    progress(f"peaks of {device}")
    machine = describe_machine(torch.device(device), getattr(torch, dtype))
    notes: list[str] = []
    chosen = []
    for name in baselines:
        why = missing(name)
        if why is None:
            chosen.append(name)
        else:
            notes.append(f"{name}: skipped, {why}")
    rows = [
        _measure(case, settings, machine, chosen, device, progress, notes)
        for case in _cases(suite, batch_sizes, prefix, suffix)
    ]
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return AttentionReport(machine, today, "triton" if gpu else "torch", settings, rows, notes)


def _cases(suite: str, batch_sizes: Sequence[int], prefix: int, suffix: int) -> list[TreeCase]:
    if suite == "seed":
        return [shared_prompt_case(batch, prefix, suffix) for batch in batch_sizes]
    if suite == "fasttree":
        return fasttree_cases()
    return [search_case(batch) for batch in batch_sizes]


def _check(
    batch_sizes: Sequence[int], prefix: int, suffix: int, heads: int, kv_heads: int, head_dim: int, dtype: str,
    block_size: int | None, suite: str, baselines: Sequence[str],
) -> None:  # fmt: skip
    if prefix < 0:
        raise ValueError(f"prefix must be at least 0, not {prefix}")
    sizes = {"suffix": suffix, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    sizes |= {"block_size": 16 if block_size is None else block_size, "batch size": min(batch_sizes)}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} kv heads")
    if dtype not in ("float16", "bfloat16", "float32"):
        raise ValueError(f"dtype must be float16, bfloat16 or float32, not {dtype!r}")
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, not {suite!r}")
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"baselines are {', '.join(BASELINES)}, not {unknown[0]!r}")


def _measure(
    case: TreeCase, settings: AttentionSettings, machine: Machine, baselines: Sequence[str], device: str,
    progress: Callable[[str], None], notes: list[str],
) -> AttentionRow:  # fmt: skip
    dtype = getattr(torch, settings.dtype)
    token_bytes = 2 * settings.kv_heads * settings.head_dim * dtype.itemsize
    gpu = device.startswith("cuda")
    memory = torch.cuda.mem_get_info()[0] // 3 if gpu else 1 << 30
    layers = rotating_sets(case.unique_tokens * token_bytes, memory) if gpu else 1
    progress(f"{case.name}: {case.unique_tokens} tokens, {case.batch} branches")
    pool, branches = build_case(
        case, kv_heads=settings.kv_heads, head_dim=settings.head_dim,
        block_size=settings.block_size or case.natural_block_size, layers=layers, device=device, dtype=dtype,
    )  # fmt: skip
    stats = pool.stats()
    q = torch.randn(layers, len(branches), settings.heads, settings.head_dim, device=device).to(dtype)
    tree = plan_tree(pool, branches)
    plan_seconds = _time_plan(pool, branches, settings.heads)
    out, tree_seconds = _time_tree(pool, tree, q)
    error = _error(pool, tree, q[0], out)
    progress(f"{case.name}: linear attention on shared pages")
    _, linear_seconds = _time_tree(pool, linear_plan(tree), q)
    peers: dict[str, float | None] = {}
    for name in baselines:
        progress(f"{case.name}: {name}")
        try:
            peers[name] = 1e6 * time_calls(BASELINES[name](case, pool, branches, q), device=pool.device)
        except Exception as why:  # whatever another library raises must not end the benchmark
            peers[name] = None
            reason = str(why) if isinstance(why, Unavailable) else f"{type(why).__name__}: {why}"
            notes.append(f"{case.name}: {name} skipped, {reason.splitlines()[0][:160]}")
        if gpu:
            torch.cuda.empty_cache()
    copied = peers.pop("sdpa", None)
    moved = stats.physical_tokens * token_bytes + 2 * q[0].numel() * dtype.itemsize
    flops = 4 * stats.logical_tokens * settings.heads * settings.head_dim
    linear = copied if copied is not None else 1e6 * linear_seconds
    return AttentionRow(
        case=case.name,
        batch=case.batch,
        tree_us=1e6 * tree_seconds,
        linear_shared_us=1e6 * linear_seconds,
        linear_copied_us=copied,
        peers_us=peers,
        speedup=linear / (1e6 * tree_seconds),
        kv_bytes=stats.physical_tokens * token_bytes,
        kv_bytes_unshared=stats.logical_tokens * token_bytes,
        bandwidth=moved / tree_seconds,
        floor_us=1e6 * max(moved / machine.bandwidth, flops / machine.flops),
        error=error,
        plan_us=1e6 * plan_seconds,
    )


def _plan(pool: PhysicalKVAllocator, tree: TreePlan) -> Any:
    if pool.device.type == "cuda":
        from frtool.kernels.triton_tree import plan_triton

        return plan_triton(pool, tree)
    from frtool.kernels.grouped import plan_grouped

    return plan_grouped(pool, tree)


def _time_plan(pool: PhysicalKVAllocator, branches: Sequence[int], heads: int) -> float:
    """Median seconds of a plan where one of `branches`, each time another one, gave way to a fork of the one before."""
    plan = _plan(pool, plan_tree(pool, branches))
    on_gpu = pool.device.type == "cuda"
    if on_gpu:
        plan.launch_for(heads)
    samples = []
    for i in torch.linspace(0, len(branches) - 1, _PLANS).long().tolist():
        fork = pool.fork(branches[i - 1]).branch_id
        changed = [*branches[:i], fork, *branches[i + 1 :]]
        begin = time.perf_counter()
        tree = plan_tree(pool, changed)
        if on_gpu:
            plan.update(tree)
        else:
            _plan(pool, tree)
        samples.append(time.perf_counter() - begin)
        pool.free_branch(fork)
    return statistics.median(samples)


def _time_tree(pool: PhysicalKVAllocator, tree: TreePlan, q: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The first layer's output, and seconds a call."""
    plan = _plan(pool, tree)
    out = torch.full_like(q, float("nan"))
    calls = [
        lambda layer=layer: tree_attention(q[layer], pool, layer=layer, plan=plan, out=out[layer])  # type: ignore[misc]
        for layer in range(len(q))
    ]
    return out[0], time_calls(calls, device=pool.device)


def _error(pool: PhysicalKVAllocator, tree: TreePlan, q: torch.Tensor, out: torch.Tensor) -> float:
    """||out - reference|| / ||reference|| in fp64 on the CPU, of up to 16 queries spread over the branches."""
    chosen = torch.linspace(0, len(q) - 1, min(len(q), _ERROR_QUERIES)).long().tolist()
    group = q.shape[1] // pool.num_kv_heads
    difference, norm = 0.0, 0.0
    for i in chosen:
        slots = torch.from_numpy(pool.slots(tree.branch_ids[i])).to(pool.device)
        k, v = (
            c[0].flatten(0, 1)[slots].cpu().double().repeat_interleave(group, 1) for c in (pool.k_cache, pool.v_cache)
        )
        scores = torch.einsum("hd,jhd->hj", q[i].cpu().double(), k) * q.shape[2] ** -0.5
        expected = torch.einsum("hj,jhd->hd", torch.softmax(scores, dim=1), v)
        difference += float((out[i].cpu().double() - expected).square().sum())
        norm += float(expected.square().sum())
    return float((difference / norm) ** 0.5)
