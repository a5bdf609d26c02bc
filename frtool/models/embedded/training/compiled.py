"""`jit`: numba where it is installed, plain Python where it is not (the tests), some hundred times slower."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_numba: Any = import_module("numba") if find_spec("numba") else None


def jit(function: F) -> F:
    if _numba is None:
        return function
    compiled: F = _numba.njit(nogil=True, error_model="numpy")(function)
    return compiled
