"""Paths that are about to be read in one forward pass, and room for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from frtool.engine.shortage import told_as_shortage
from frtool.kernels.allocator import OutOfBlocks
from frtool.search.protocols import OutOfMemory

if TYPE_CHECKING:
    import torch

    from frtool.engine.batch import DecodeBatch
    from frtool.kernels.allocator import PhysicalKVAllocator

PASS_TOKENS = 4096
"""Tokens of one forward pass, unless a single path has more to read."""


@dataclass(slots=True, eq=False)
class Reading:
    """A path on a branch of its own: its tokens from `start` on are new."""

    index: int
    ids: list[int]
    branch_id: int
    start: int

    @property
    def new(self) -> list[int]:
        return self.ids[self.start :]


def make_room(allocator: PhysicalKVAllocator, readings: list[Reading], evict: Callable[[int], bool]) -> None:
    """Append the new tokens to the branches. Those that find no room leave the list, last first, and are freed.

    `evict` tries to free so many blocks and says whether it freed any. Raises OutOfMemory where not even one fits.
    """
    while True:
        try:
            allocator.append_many([item.branch_id for item in readings], [len(item.new) for item in readings])
            return
        except OutOfBlocks as error:
            if evict(error.needed):
                continue
            if len(readings) == 1:
                raise OutOfMemory(
                    f"scoring a path of {len(readings[0].ids)} tokens needs {error.needed} more KV blocks, "
                    f"{error.free} are free of {allocator.num_blocks}"
                ) from None
            allocator.free_branch(readings.pop().branch_id)


def read_last(batch: DecodeBatch, readings: list[Reading]) -> torch.Tensor:
    """Feed the new tokens, and return what the model gives after the last one of each path: float32 [R, …]. Raises
    OutOfMemory where the device has none for it."""
    counts = [len(item.new) for item in readings]
    stops = [sum(counts[: index + 1]) - 1 for index in range(len(counts))]
    tokens = list(chain.from_iterable(item.new for item in readings))
    with told_as_shortage(f"scoring {len(readings)} steps"):
        return batch.forward([item.branch_id for item in readings], counts, tokens, stops)[: len(readings)]
