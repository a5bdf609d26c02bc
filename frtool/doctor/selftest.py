"""Runs tree attention on a small tree and compares it with the reference in fp64: `python -m frtool.doctor.selftest`.

Prints one JSON object. A process of its own, because Triton decides at import whether it interprets, and because a
kernel that goes wrong on a GPU takes its process with it.
"""

from __future__ import annotations

import json
import sys


def compare(backend: str, device: str) -> float:
    """The largest distance between the backend's result and the fp64 reference, over three branches of one tree."""
    import torch

    from frtool.kernels.allocator import PhysicalKVAllocator
    from frtool.kernels.attention import tree_attention

    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.float16
    allocator = PhysicalKVAllocator(32, 16, num_kv_heads=2, head_dim=32, device=device, dtype=dtype)
    root = allocator.alloc_branch(40).branch_id
    branches = [root, allocator.fork(root).branch_id, allocator.fork(root, 21).branch_id]
    allocator.append_many(branches, [3, 1, 9])
    for cache in (allocator.k_cache, allocator.v_cache):
        cache.normal_()
    q = torch.randn(5, 4, 32, device=device, dtype=dtype)
    out = tree_attention(q, allocator, branches, q_lens=[3, 1, 1], backend=backend)
    exact = tree_attention(q.double(), allocator, branches, q_lens=[3, 1, 1], backend="reference")
    return float((out.double() - exact).abs().max())


def main(backend: str, device: str) -> None:
    print(json.dumps({"backend": backend, "device": device, "distance": compare(backend, device)}))


if __name__ == "__main__":
    main(*sys.argv[1:3])
