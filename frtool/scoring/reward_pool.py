"""The KV pool of a reward model, which the scorers of several questions may share, and the passes that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from frtool.engine.batch import DecodeBatch
from frtool.engine.options import CPU_BLOCK, GPU_BLOCK
from frtool.engine.pool import block_bytes
from frtool.kernels.allocator import PhysicalKVAllocator
from frtool.models.memory import free_memory
from frtool.search.protocols import OutOfMemory

from .reading import PASS_TOKENS, Reading, make_room, read_last

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel
    from frtool.search.tree import Node

_SHARE = 0.25
"""Of the free memory: the policy needs more."""
_CPU_BYTES = 1 << 28


@dataclass(slots=True, eq=False)
class Asked:
    """A path that is to be read, and for whom."""

    holder: Holder
    node: Node | None
    """None: it is the question alone, whose KV is wanted."""
    ids: list[int]


class Holder(Protocol):
    """Who holds branches in the pool and asks for paths."""

    failure: Exception | None
    """Set by the pool where it could not read; nothing more is read for this holder."""

    def evict(self, blocks: int) -> bool:
        """Free branches until `blocks` are free in the pool; whether any was freed."""

    def missing(self) -> list[Asked]:
        """What has to be in KV before the paths are read."""

    def asked(self) -> list[Asked]:
        """The paths whose values are wanted. Called once."""

    def fork(self, asked: Asked) -> tuple[int, int]:
        """A branch with a beginning of the path, at most all but its last token, and how many tokens that is."""

    def values(self, out: torch.Tensor) -> torch.Tensor:
        """[R] in [0, 1], of what the model gives after R paths."""

    def count(self, tokens: int) -> None:
        """So many of its tokens were read in a pass."""

    def take(self, asked: Asked, reading: Reading, value: float) -> None:
        """The value of a path, and its branch with all of it."""


class RewardPool:
    """`num_blocks`: by default a share of the free memory, no more than `expected_tokens` take."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_blocks: int | None = None,
        block_size: int | None = None,
        expected_tokens: int | None = None,
    ) -> None:
        self.loaded = loaded
        on_gpu = loaded.device.type == "cuda"
        size = block_size or (GPU_BLOCK if on_gpu else CPU_BLOCK)
        blocks = num_blocks
        if blocks is None:
            free = int(free_memory(loaded.device) * _SHARE)
            blocks = max((free if on_gpu else min(free, _CPU_BYTES)) // block_bytes(loaded, size), 1)
            if expected_tokens is not None:
                blocks = min(blocks, -(-expected_tokens // size))
        self.allocator = PhysicalKVAllocator(
            blocks, size, loaded.num_kv_heads, loaded.head_dim, loaded.device, loaded.num_layers, loaded.dtype
        )
        self.batch = DecodeBatch(loaded, self.allocator, 64)
        self.holders: list[Holder] = []
        """Oldest first."""
        self.asking: list[Holder] = []
        """Those that wait for `answer`."""
        self.passes = 0
        """Forward passes so far."""

    def evict(self, blocks: int) -> bool:
        """Let the holders free branches, the youngest first, until `blocks` are free; whether any was freed."""
        evicted = False
        for holder in reversed(self.holders):
            evicted = holder.evict(blocks) or evicted
            if self.allocator.free_blocks >= blocks:
                break
        return evicted

    @torch.inference_mode()
    def answer(self) -> None:
        """Read what all who ask want, in as few passes as it takes, first asked first."""
        asking, self.asking = self.asking, []
        self._read([item for holder in asking for item in holder.missing()])
        self._read([item for holder in asking for item in holder.asked()])

    def _read(self, waiting: list[Asked]) -> None:
        limit = PASS_TOKENS
        while waiting := [item for item in waiting if item.holder.failure is None]:
            done, limit = self._pass(waiting, limit)
            waiting = waiting[done:]

    def _pass(self, waiting: list[Asked], limit: int) -> tuple[int, int]:
        """Read as many of the waiting paths as fit into one pass; how many that are, and the limit of the next."""
        readings: list[Reading] = []
        try:
            total = 0
            for index, item in enumerate(waiting):
                branch_id, start = item.holder.fork(item)
                readings.append(Reading(index, item.ids, branch_id, start))
                total += len(item.ids) - start
                if total > limit and len(readings) > 1:
                    self.allocator.free_branch(readings.pop().branch_id)
                    break
            try:
                make_room(self.allocator, readings, self.evict)
                out = read_last(self.batch, readings)
            except OutOfMemory as error:
                if len(readings) == 1:
                    waiting[0].holder.failure = error
                self._free(readings)
                return 0, max(total // 2, 1)
            self.passes += 1
            values = self._values(waiting[: len(readings)], out)
        except BaseException:
            self._free(readings)
            raise
        tokens: dict[Holder, int] = {}
        for item, reading in zip(waiting, readings, strict=False):
            tokens[item.holder] = tokens.get(item.holder, 0) + len(reading.new)
        for holder, count in tokens.items():
            holder.count(count)
        for item, reading, value in zip(waiting, readings, values, strict=False):
            item.holder.take(item, reading, value)
        return len(readings), limit

    def _values(self, items: list[Asked], out: torch.Tensor) -> list[float]:
        """Of each path: one holder after the other, and all of them to the host at once."""
        parts, start = [], 0
        for stop in range(1, len(items) + 1):
            if stop == len(items) or items[stop].holder is not items[start].holder:
                parts.append(items[start].holder.values(out[start:stop]).float())
                start = stop
        values: list[float] = torch.cat(parts).tolist()
        return values

    def _free(self, readings: list[Reading]) -> None:
        for reading in readings:
            self.allocator.free_branch(reading.branch_id)
