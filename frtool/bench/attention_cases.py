"""The trees that attention is measured on, and how they are laid out in a pool."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from frtool.kernels.allocator import PhysicalKVAllocator


@dataclass(frozen=True, slots=True)
class TreeCase:
    """A tree of token runs: node i adds `tokens[i]` tokens to its parent's path. The leaves are the branches."""

    name: str
    parents: tuple[int, ...]
    """Index of each node's parent, below its own; -1 for a root."""
    tokens: tuple[int, ...]

    @property
    def leaves(self) -> list[int]:
        inner = set(self.parents)
        return [i for i in range(len(self.parents)) if i not in inner]

    @property
    def batch(self) -> int:
        return len(self.leaves)

    @property
    def unique_tokens(self) -> int:
        return sum(self.tokens)

    def path_tokens(self) -> list[int]:
        """Tokens from the root to each node's end."""
        ends: list[int] = []
        for parent, tokens in zip(self.parents, self.tokens, strict=True):
            ends.append(tokens + (ends[parent] if parent >= 0 else 0))
        return ends

    @property
    def logical_tokens(self) -> int:
        """What the branches would store without sharing."""
        ends = self.path_tokens()
        return sum(ends[leaf] for leaf in self.leaves)

    @property
    def natural_block_size(self) -> int:
        """16, or 8 where a run of tokens is no multiple of 16."""
        return 8 if any(t % 16 for t in self.tokens) else 16


def level_case(name: str, nodes: Sequence[int], tokens: Sequence[int]) -> TreeCase:
    """`nodes[l]` nodes of `tokens[l]` tokens on level l; node j of a level has parent j * previous // size."""
    parents: list[int] = []
    lengths: list[int] = []
    previous, first = 0, 0
    for count, length in zip(nodes, tokens, strict=True):
        parents += [first + j * previous // count if previous else -1 for j in range(count)]
        lengths += [length] * count
        first, previous = len(parents) - count, count
    return TreeCase(name, tuple(parents), tuple(lengths))


def shared_prompt_case(batch: int, prefix: int, suffix: int) -> TreeCase:
    """One prompt of `prefix` tokens and `batch` branches of `suffix` tokens below it; 0 for `batch` roots."""
    if not prefix:
        return level_case(f"B={batch}", (batch,), (suffix,))
    return level_case(f"B={batch}", (1, batch), (prefix, suffix))


_FASTTREE = (
    ((1, 2, 64), (8, 256, 32)),
    ((1, 4, 256), (8, 256, 32)),
    ((1, 4, 8, 256), (8, 256, 256, 32)),
    ((1, 256), (256, 32)),
    ((1, 1024), (2048, 32)),
    ((1, 16, 64), (1024, 256, 32)),
    ((1, 4, 16, 512), (1024, 256, 128, 32)),
    ((1, 4, 16, 64, 256, 1024), (256, 8, 256, 64, 32, 256)),
    ((1, 10), (4000, 400)),
    ((1, 2, 4, 8, 16, 32, 64, 128, 1024), (16,) * 9),
    ((1, 2, 4, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16, 16, 16)),
    ((1, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16)),
    ((1, 8, 16, 32, 64, 256, 1024), (256, 128, 64, 16, 16, 16, 16)),
    ((1, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16)),
    ((1, 16, 32, 64, 256, 1024), (256, 128, 64, 16, 16, 16)),
)


def fasttree_cases() -> list[TreeCase]:
    """The trees of the FastTree paper (MLSys 2025), F1 to F15."""
    return [level_case(f"F{i}", nodes, tokens) for i, (nodes, tokens) in enumerate(_FASTTREE, 1)]


def search_case(
    batch: int, *, prompt: int = 512, step: tuple[int, int] = (24, 120), width: int = 4, seed: int = 0
) -> TreeCase:
    """A tree as a reasoning search grows it: steps of random length below a prompt, up to `width` children a node,
    until `batch` branches are alive."""
    rng = random.Random(f"{seed}/{batch}")
    parents, tokens, children = [-1], [prompt], [0]
    leaves = 1
    while leaves < batch:
        parent = rng.choice([i for i in range(len(parents)) if children[i] < width])
        if children[parent]:
            leaves += 1
        children[parent] += 1
        parents.append(parent)
        tokens.append(rng.randint(*step))
        children.append(0)
    return TreeCase(f"search {batch}", tuple(parents), tuple(tokens))


def build_case(
    case: TreeCase, *, kv_heads: int, head_dim: int, block_size: int, layers: int, device: str | torch.device,
    dtype: torch.dtype,
) -> tuple[PhysicalKVAllocator, list[int]]:  # fmt: skip
    """A pool that holds the tree in shuffled blocks with random K and V on every layer, and its branches' ids."""
    import torch

    from frtool.kernels.allocator import PhysicalKVAllocator

    blocks = sum(-(-t // block_size) + 1 for t in case.tokens)
    pool = PhysicalKVAllocator(blocks, block_size, kv_heads, head_dim, device, layers, dtype)
    # A pool that has been in use hands out blocks in no order; a fresh one would lay every run out in a row.
    spare = [pool.alloc_branch(block_size).branch_id for _ in range(blocks)]
    random.Random(0).shuffle(spare)
    for branch in spare:
        pool.free_branch(branch)
    ids: list[int] = []
    for parent, length in zip(case.parents, case.path_tokens(), strict=True):
        ids.append(pool.alloc_branch(length, ids[parent] if parent >= 0 else None).branch_id)
    leaves = case.leaves
    kept = set(leaves)
    for i, branch in enumerate(ids):
        if i not in kept:
            pool.free_branch(branch)
    generator = torch.Generator(device=device).manual_seed(0)
    for cache in (pool.k_cache, pool.v_cache):
        for layer in range(layers):
            cache[layer].normal_(generator=generator)
    return pool, [ids[i] for i in leaves]
