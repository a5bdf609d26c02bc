"""Memory that is freed stays with the process: what plans need next costs no page faults."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from frtool.kernels.heap import keep_freed_memory


def page_faults(count: int, size: int) -> int:
    """Of `count` arrays of so many bytes, written one after the other."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(count):
        np.ones(size, np.uint8)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_arrays_that_follow_each_other_take_the_same_memory():
    if not keep_freed_memory():
        pytest.skip("another C library than glibc")
    size = 1 << 20
    page_faults(2, size)
    assert page_faults(50, size) < size // 4096
