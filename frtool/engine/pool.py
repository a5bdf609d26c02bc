"""How large the KV pool is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from frtool.errors import UsageError
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.models.memory import free_memory

from .options import CPU_BLOCK, GPU_BLOCK, EngineOptions

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

# What a pool may take of the free memory when nobody says: a GPU is there for this, a computer is not.
_SHARE = {"cuda": 0.8, "cpu": 0.5}
_CPU_BYTES = 1 << 29


def block_bytes(loaded: LoadedModel, block_size: int) -> int:
    """Bytes of one block: K and V of `block_size` tokens in all layers."""
    return 2 * loaded.num_layers * block_size * loaded.num_kv_heads * loaded.head_dim * loaded.dtype.itemsize


def least_blocks(prompt_tokens: int, step_tokens: int, block_size: int) -> int:
    """Blocks for the prompt and one step below it, with the copy of the prompt's last, partly filled block."""
    return -(-prompt_tokens // block_size) + -(-(prompt_tokens % block_size + step_tokens) // block_size)


def make_pool(loaded: LoadedModel, prompt_tokens: int, options: EngineOptions) -> PhysicalKVAllocator:
    """The pool for one engine. Raises UsageError, before it allocates, when not even one step would fit."""
    size = options.block_size or (GPU_BLOCK if loaded.device.type == "cuda" else CPU_BLOCK)
    each = block_bytes(loaded, size)
    least = _least(loaded, prompt_tokens, options, size)
    if options.num_blocks is not None:
        blocks = options.num_blocks
    elif options.kv_memory is not None:
        blocks = options.kv_memory // each
    else:
        blocks = _default_blocks(loaded.device, each, least)
        if options.expected_tokens is not None:
            blocks = min(blocks, max(least, -(-(prompt_tokens + options.expected_tokens) // size)))
    check_blocks(loaded, prompt_tokens, options, blocks, size)
    try:
        return PhysicalKVAllocator(
            blocks, size, loaded.num_kv_heads, loaded.head_dim, loaded.device, loaded.num_layers, loaded.dtype
        )
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "alloc" not in str(error):
            raise
        raise UsageError(
            f"the KV pool of {_mib(blocks * each)} does not fit into the memory of {loaded.device}",
            hint="lower --kv-memory",
        ) from None


def check_blocks(loaded: LoadedModel, prompt_tokens: int, options: EngineOptions, blocks: int, block_size: int) -> None:
    """Raise UsageError unless a pool of `blocks` holds the prompt and one step below it."""
    least = _least(loaded, prompt_tokens, options, block_size)
    if blocks < least:
        each = block_bytes(loaded, block_size)
        raise UsageError(
            f"the KV pool of {blocks} blocks ({_mib(blocks * each)}) is too small: "
            f"the prompt of {prompt_tokens} tokens and one step of {_step(loaded, prompt_tokens, options)} "
            f"need {least} blocks ({_mib(least * each)})",
            hint="raise --kv-memory, or lower --max-step-tokens",
        )


def _least(loaded: LoadedModel, prompt_tokens: int, options: EngineOptions, block_size: int) -> int:
    step = _step(loaded, prompt_tokens, options) + int(options.read_rewards)
    return least_blocks(prompt_tokens, step, block_size)


def _step(loaded: LoadedModel, prompt_tokens: int, options: EngineOptions) -> int:
    """Tokens of the longest step."""
    return min(options.max_step_tokens, loaded.max_positions - prompt_tokens)


def _default_blocks(device: torch.device, each: int, least: int) -> int:
    """Blocks of `each` bytes that the free memory is good for."""
    budget = int(free_memory(device) * _SHARE.get(device.type, 0.5))
    if device.type == "cpu":
        budget = min(budget, max(_CPU_BYTES, 4 * least * each))
    return budget // each


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
