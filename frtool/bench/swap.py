"""KV of evicted nodes: copied to host memory and back, against read again in one pass.

`python -m frtool.bench.swap --model llama-3.1-8b --device cuda --output FILE.json`, on random weights of real shapes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from frtool.engine.batch import DecodeBatch
from frtool.engine.swap import HostCopy, HostMemory, worth_a_copy
from frtool.kernels.allocator import PhysicalKVAllocator

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class SwapRow:
    """Seconds are medians, of all nodes together."""

    nodes: int
    tokens: int
    """Of each node."""
    bytes: int
    """Of all nodes."""
    seconds_out: float
    seconds_back: float
    seconds_again: float
    """Of one pass over the tokens of all nodes."""
    copied: bool
    """What the engine does with such nodes."""


def run_swap_benchmark(
    loaded: LoadedModel, *, prompt: int = 512, nodes: int = 32, tokens: int = 40, block_size: int = 16, repeats: int = 5
) -> SwapRow:
    """`nodes` of `tokens` each below one prompt, evicted and brought back."""
    blocks = prompt // block_size + nodes * (tokens // block_size + 3) + 2
    allocator = PhysicalKVAllocator(
        blocks, block_size, loaded.num_kv_heads, loaded.head_dim, loaded.device, loaded.num_layers, loaded.dtype
    )
    batch = DecodeBatch(loaded, allocator, nodes * tokens)
    swap = HostMemory(loaded, allocator, 1 << 40)
    trunk = allocator.alloc_branch(prompt).branch_id
    ids = [token % loaded.vocab_size for token in range(prompt)]
    with torch.inference_mode():
        batch.forward([trunk], [prompt], ids, [prompt - 1])
        again, out, back = [], [], []
        for _ in range(repeats + 1):  # the first pass compiles and allocates
            branches = [allocator.fork(trunk).branch_id for _ in range(nodes)]
            allocator.append_many(branches, [tokens] * nodes)
            fresh = (ids * (nodes * tokens // prompt + 1))[: nodes * tokens]
            counts, last = [tokens] * nodes, [nodes * tokens - 1]
            again.append(_timed(loaded, batch.forward, branches, counts, fresh, last))
            copies: list[HostCopy] = []
            out.append(_timed(loaded, _leave, swap, branches, (prompt, prompt + tokens), copies))
            back.append(_timed(loaded, _come_back, swap, allocator, branches, copies))
            for branch in branches:
                allocator.free_branch(branch)
    token_bytes = allocator.block_bytes // block_size
    return SwapRow(
        nodes=nodes,
        tokens=tokens,
        bytes=nodes * tokens * token_bytes,
        seconds_out=median(out[1:]),
        seconds_back=median(back[1:]),
        seconds_again=median(again[1:]),
        copied=loaded.device.type == "cuda" and worth_a_copy(loaded.parameters, token_bytes, tokens),
    )


def _leave(swap: HostMemory, branches: list[int], span: tuple[int, int], copies: list[HostCopy]) -> None:
    for branch in branches:
        copied = swap.copy(branch, *span)
        assert copied is not None, "there is no host memory"
        copies.append(copied)


def _come_back(swap: HostMemory, allocator: PhysicalKVAllocator, branches: list[int], copies: list[HostCopy]) -> None:
    for branch, copied in zip(branches, copies, strict=True):
        kv = swap.bring_back(copied)
        assert kv is not None, "there is no device memory"
        allocator.write_slots(allocator.last_slots([branch], [copied.tokens]), kv)


def _timed(loaded: LoadedModel, run: Callable[..., object], *arguments: Any) -> float:
    on_gpu = loaded.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(loaded.device)
    began = time.perf_counter()
    run(*arguments)
    if on_gpu:
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter() - began


def main() -> None:
    from frtool.bench.decode_models import SHAPES, random_model
    from frtool.bench.machine import machine, put_out

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--nodes", default="8,32,128", help="how many are evicted together")
    parser.add_argument("--tokens", type=int, default=40, help="of each")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    loaded = random_model(given.model, torch.device(given.device), getattr(torch, given.dtype))
    rows = [
        run_swap_benchmark(loaded, prompt=given.prompt, nodes=int(nodes), tokens=given.tokens)
        for nodes in given.nodes.split(",")
    ]
    record = {"machine": machine(loaded), "prompt": given.prompt, "rows": [asdict(row) for row in rows]}
    put_out(record, given.output)


if __name__ == "__main__":
    main()
