"""Random trees in a small pool, and the naive fp64 result to hold every backend against."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.kernels.plan import plan_tree
from frtool.kernels.reference import ReferencePlan, attend_reference


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors only: on a busy machine two threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Forest:
    """An allocator with random K and V, the branches that ask, and their queries `q` `[T, Hq, D]`."""

    allocator: PhysicalKVAllocator
    branch_ids: list[int]
    q_lens: list[int]
    heads: int
    q: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.q = torch.randn(sum(self.q_lens), self.heads, self.allocator.head_dim, dtype=self.allocator.dtype)

    def select(self, rows: list[int]) -> tuple[list[int], list[int], torch.Tensor]:
        """Branches, query counts and token indices of some of the branches, in that order."""
        starts = [sum(self.q_lens[:i]) for i in range(len(self.q_lens))]
        tokens = [torch.arange(starts[i], starts[i] + self.q_lens[i]) for i in rows]
        return [self.branch_ids[i] for i in rows], [self.q_lens[i] for i in rows], torch.cat(tokens)

    def expected(self, *, layer: int = 0, scale: float | None = None, **options: Any) -> torch.Tensor:
        """The reference in fp64, poisoned before."""
        out = torch.full(self.q.shape, torch.nan, dtype=torch.float64)
        settings = {"window": None, "softcap": None, "sinks": None, **options}
        plan = ReferencePlan(plan_tree(self.allocator, self.branch_ids, self.q_lens))
        scale = self.allocator.head_dim**-0.5 if scale is None else scale
        attend_reference(
            self.q, self.allocator, plan, layer=layer, scale=scale, out=out, dtype=torch.float64, **settings
        )
        return out


@pytest.fixture
def random_forest() -> Callable[..., Forest]:
    """Make a `Forest` from a seed: random forks at any position, random growth, random frees."""

    def make(
        seed: int,
        *,
        block_size: int = 16,
        kv_heads: int = 2,
        group: int = 2,
        head_dim: int = 16,
        dtype: torch.dtype = torch.float32,
        roots: int = 2,
        steps: int = 40,
        longest: int = 200,
        most_queries: int = 1,
        num_layers: int = 2,
    ) -> Forest:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        allocator = PhysicalKVAllocator(
            4 * (steps + roots) * (longest // block_size + 2), block_size, kv_heads, head_dim, "cpu", num_layers, dtype
        )
        allocator.k_cache.normal_()
        allocator.v_cache.normal_()
        ids = [allocator.alloc_branch(rng.randint(1, longest)).branch_id for _ in range(roots)]
        for _ in range(steps):
            branch, act = rng.choice(ids), rng.random()
            if act < 0.5:
                position = rng.choice([None, rng.randint(1, allocator.length(branch))])
                ids.append(allocator.fork(branch, position).branch_id)
            elif act < 0.85 and allocator.length(branch) < 2 * longest:
                allocator.append(branch, rng.randint(1, 40))
            elif len(ids) > 1:
                ids.remove(branch)
                allocator.free_branch(branch)
        allocator.check()
        rng.shuffle(ids)
        q_lens = [rng.randint(1, min(most_queries, allocator.length(i))) for i in ids]
        return Forest(allocator, ids, q_lens, kv_heads * group)

    return make
