"""A device without memory for a pass, told as the search knows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from frtool.models.text import one_line
from frtool.search.protocols import OutOfMemory


def shortage(error: BaseException, what: str) -> OutOfMemory:
    """The search's error for torch's: `what` found no memory."""
    said = one_line(str(error).partition(" GPU ")[0] or type(error).__name__)
    return OutOfMemory(f"{what} finds no memory on the device: {said}")


@contextlib.contextmanager
def told_as_shortage(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise shortage(error, what) from None
