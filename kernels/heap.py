"""The host's heap, where plans are made."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_KEPT = 64 << 20
_LARGEST = 32 << 20
"""The most that glibc takes for the second."""


@cache
def keep_freed_memory() -> bool:
    """Let the process keep up to 64 MB that it has freed, as glibc comes to do by itself after a few large blocks.
    Whether it does from now on: not without glibc.

    By itself it gives the system back all above 128 KB at the heap's end, and asks for it again. A plan's arrays come
    to that, and page faults took a seventh of the time of a plan after a fork.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
