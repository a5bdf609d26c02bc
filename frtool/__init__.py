"""Reasoning search on your own machine: a tree of steps over one paged, shared KV cache.

`frtool.search("Make 24 from 4, 5, 6, 10").answer` searches from Python; `frtool.search` is at the same time the package
of the tree and its algorithms.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import search as _search

if TYPE_CHECKING:
    from frtool.kernels.allocator import Branch, OutOfBlocks, PhysicalKVAllocator
    from frtool.kernels.attention import plan_attention, tree_attention
    from frtool.models.load import load_model
    from frtool.search.budget import Budget
    from frtool.solving.calls import search, search_many, stream
    from frtool.solving.question import Question
    from frtool.solving.result import SearchResult

__version__ = "0.1.0"

# Resolved on first use, because torch takes seconds to import and `frtool --help` must not wait for it.
_EXPORTS = {
    "Branch": "frtool.kernels.allocator",
    "Budget": "frtool.search.budget",
    "OutOfBlocks": "frtool.kernels.allocator",
    "PhysicalKVAllocator": "frtool.kernels.allocator",
    "Question": "frtool.solving.question",
    "SearchResult": "frtool.solving.result",
    "load_model": "frtool.models.load",
    "plan_attention": "frtool.kernels.attention",
    "search_many": "frtool.solving.calls",
    "stream": "frtool.solving.calls",
    "tree_attention": "frtool.kernels.attention",
}
__all__ = [  # noqa: RUF022 (the package comes first)
    "search",
    "Branch",
    "Budget",
    "OutOfBlocks",
    "PhysicalKVAllocator",
    "Question",
    "SearchResult",
    "__version__",
    "load_model",
    "plan_attention",
    "search_many",
    "stream",
    "tree_attention",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'frtool' has no attribute {name!r}")


class _CallableSearch(ModuleType):
    """Lets the package `frtool.search` be called, without its knowing of the application."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("frtool.solving.calls").search(*args, **kwargs)


sys.modules[_search.__name__].__class__ = _CallableSearch
