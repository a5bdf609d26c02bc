"""Make transformers' GGUF loader quiet and parse the file once.

It builds a `GGUFReader` for the configuration, the tokenizer and the weights, a tensor name map for every module, and
draws its own bar. Each is a pure function of the file or of the architecture, so one result serves all calls: loading
SmolLM2-135M takes less than half the time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """While this is active, equal calls into the gguf package are answered from memory, and no bar is drawn."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    with (
        _replaced(gguf, "GGUFReader", functools.cache),
        _replaced(gguf, "get_tensor_name_map", functools.cache),
        _replaced(loader, "tqdm", _without_bar),
    ):
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, wrap: Any) -> Iterator[None]:
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _without_bar(_: Any) -> Any:
    return lambda items, *args, **kwargs: items
