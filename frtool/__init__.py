"""Reasoning search on your own machine: a tree of steps over one paged, shared KV cache."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frtool.kernels.allocator import Branch, OutOfBlocks, PhysicalKVAllocator
    from frtool.kernels.attention import plan_attention, tree_attention

__version__ = "0.1.0"

# Resolved on first use, because torch takes seconds to import and `frtool --help` must not wait for it.
_EXPORTS = {
    "Branch": "frtool.kernels.allocator",
    "OutOfBlocks": "frtool.kernels.allocator",
    "PhysicalKVAllocator": "frtool.kernels.allocator",
    "plan_attention": "frtool.kernels.attention",
    "tree_attention": "frtool.kernels.attention",
}
__all__ = ["Branch", "OutOfBlocks", "PhysicalKVAllocator", "__version__", "plan_attention", "tree_attention"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'frtool' has no attribute {name!r}")
