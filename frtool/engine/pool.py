"""How large the KV pool is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from frtool.errors import UsageError
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.models.memory import free_memory

from .options import EngineOptions

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

# What a pool may take of the free memory when nobody says: a GPU is there for this, a computer is not.
_SHARE = {"cuda": 0.8, "cpu": 0.5}
_CPU_BYTES = 1 << 30
_CPU_TOKENS = 1 << 17


def block_bytes(loaded: LoadedModel, block_size: int) -> int:
    """Bytes of one block: K and V of `block_size` tokens in all layers."""
    return 2 * loaded.num_layers * block_size * loaded.num_kv_heads * loaded.head_dim * loaded.dtype.itemsize


def least_blocks(prompt_tokens: int, options: EngineOptions) -> int:
    """Blocks for the prompt and one step below it, with the copy of the prompt's last, partly filled block."""
    size = options.block_size
    step = options.max_step_tokens + int(options.read_rewards)
    return -(-prompt_tokens // size) + -(-(prompt_tokens % size + step) // size)


def make_pool(loaded: LoadedModel, prompt_tokens: int, options: EngineOptions) -> PhysicalKVAllocator:
    """The pool for one engine. Raises UsageError, before it allocates, when not even one step would fit."""
    size = options.block_size
    each = block_bytes(loaded, size)
    least = least_blocks(prompt_tokens, options)
    if options.num_blocks is not None:
        blocks = options.num_blocks
    elif options.kv_memory is not None:
        blocks = options.kv_memory // each
    else:
        blocks = _default_blocks(loaded.device, each, least, prompt_tokens, options)
    if blocks < least:
        raise UsageError(
            f"the KV pool of {blocks} blocks ({_mib(blocks * each)}) is too small: "
            f"the prompt of {prompt_tokens} tokens and one step of {options.max_step_tokens} "
            f"need {least} blocks ({_mib(least * each)})",
            hint="raise --kv-memory, or lower --max-step-tokens",
        )
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


def _default_blocks(device: torch.device, each: int, least: int, prompt_tokens: int, options: EngineOptions) -> int:
    budget = int(free_memory(device) * _SHARE.get(device.type, 0.5))
    if device.type == "cpu":
        budget = min(budget, max(_CPU_BYTES, 4 * least * each))
        budget = min(budget, max(_CPU_TOKENS // options.block_size, 4 * least) * each)
    blocks = budget // each
    if options.expected_tokens is not None:
        size = options.block_size
        blocks = min(blocks, max(least, -(-(prompt_tokens + options.expected_tokens) // size)))
    return blocks


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"
