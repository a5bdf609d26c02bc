"""One forward pass over the new tokens of several branches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from frtool.kernels.attention import AttentionPlan, plan_attention
from frtool.kernels.grouped import GroupedPlan
from frtool.models.packed import row_multiple
from frtool.models.tree_pass import TreeBatch, forward_tree

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator
    from frtool.models.load import LoadedModel

# Matrix products of at least this many rows, and a multiple of it, give each row the same bits whatever the others are.
# A CPU that packs weights may do with fewer.
ROW_MULTIPLE = 8
_TOKENS, _POSITIONS, _SLOTS, _LOGIT_ROWS = range(4)


class DecodeBatch:
    """Lays the tokens of a step out in buffers of fixed capacity and runs the model on them."""

    def __init__(self, loaded: LoadedModel, allocator: PhysicalKVAllocator, capacity: int) -> None:
        self._model = loaded.model
        self._device = loaded.device
        self._allocator = allocator
        self._on_gpu = loaded.device.type == "cuda"
        self._multiple = row_multiple(loaded) or ROW_MULTIPLE
        self._sent: torch.cuda.Event | None = None
        self._plan: GroupedPlan | None = None
        self._allocate(capacity)

    def forward(
        self, branch_ids: Sequence[int], counts: Sequence[int], tokens: Sequence[int], logit_rows: Sequence[int]
    ) -> torch.Tensor:
        """Run the last `counts[i]` tokens of each branch, given one after another in `tokens`.

        The branches hold them already (`append_many`); afterwards the pool holds their keys and values. Returns
        float32 logits [R, vocab] with R at least `len(logit_rows)`: row i follows token `logit_rows[i]`.
        """
        total, wanted = len(tokens), len(logit_rows)
        padded, rows = self._round_up(total), self._round_up(wanted)
        if padded > self._host.shape[1]:
            self._allocate(padded)
        host = self._host_array
        if self._sent is not None:
            self._sent.synchronize()  # the last copy may still be reading the buffer that is filled now
        lengths = self._allocator.lengths(branch_ids)
        starts = np.cumsum(counts) - counts
        host[_TOKENS, :total] = tokens
        host[_POSITIONS, :total] = np.arange(total) + np.repeat(lengths - counts - starts, counts)
        host[_SLOTS, :total] = self._allocator.last_slots(branch_ids, counts)
        host[:_SLOTS, total:padded] = 0
        host[_LOGIT_ROWS, :wanted] = logit_rows
        host[_LOGIT_ROWS, wanted:rows] = logit_rows[0]
        in_order = rows == padded and np.array_equal(host[_LOGIT_ROWS, :wanted], np.arange(wanted))
        plan = self._follow(branch_ids, counts)
        # Only such a plan can serve again; another one would keep its buffers on the device for nothing.
        self._plan = plan if isinstance(plan, GroupedPlan) else None
        if self._on_gpu:
            self._buffer[:, :padded].copy_(self._host[:, :padded], non_blocking=True)
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._sent.record(torch.cuda.current_stream(self._device))
        buffer = self._buffer
        with on_device(self._device):
            return forward_tree(
                self._model,
                buffer[_TOKENS, :padded],
                buffer[_POSITIONS, :padded],
                TreeBatch(self._allocator, plan, buffer[_SLOTS, :total]),
                0 if in_order else buffer[_LOGIT_ROWS, :rows],
            )

    def _follow(self, branch_ids: Sequence[int], counts: Sequence[int]) -> AttentionPlan:
        """A plan of these branches, that of the last pass where they are the same, a token longer."""
        plan, grown = self._plan, None
        if plan is not None and plan.branch_ids == tuple(branch_ids) and max(counts) == 1:
            grown = plan.grown(self._allocator)
        return grown or plan_attention(self._allocator, branch_ids, counts)

    def _allocate(self, capacity: int) -> None:
        host = torch.zeros(4, self._round_up(capacity), dtype=torch.long, pin_memory=self._on_gpu)
        # Both or neither: where the device has no memory for the second, the old two stay.
        buffer = torch.zeros_like(host, device=self._device) if self._on_gpu else host
        self._host, self._buffer, self._sent = host, buffer, None
        self._host_array = host.numpy()

    def _round_up(self, count: int) -> int:
        return -(-max(count, 1) // self._multiple) * self._multiple


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels and events go to `device` within it: Triton's and torch's own go to the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
