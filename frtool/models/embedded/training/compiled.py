"""`jit`: numba where it is installed, plain Python where it is not (the tests), some hundred times slower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
except ImportError:
    numba = None


def jit(function: F) -> F:
    if numba is None:
        return function
    compiled: F = numba.njit(nogil=True, error_model="numpy")(function)
    return compiled
