"""A pass over new tokens from embedding to sampled token, in memory that never moves, so that a graph can replay it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from frtool.kernels.attention import plan_attention
from frtool.kernels.plan import plan_tree
from frtool.models.output_matrix import OutputMatrix
from frtool.models.tree_pass import TreeBatch, model_logits

from .readout import READINGS

if TYPE_CHECKING:
    from frtool.kernels.allocator import PhysicalKVAllocator
    from frtool.models.load import LoadedModel

    from .compiled import CompiledLayers
    from .readout import Readout

_ID, _POSITION, _SLOT, _UNIFORM, _SOURCE = range(5)
_IN_FLIGHT = 2
"""Passes at once: one runs while the last is read."""


@dataclass(slots=True)
class Tokens:
    """The new tokens of a pass, branch after branch: the last `counts[i]` of each branch, which holds them already."""

    branch_ids: Sequence[int]
    counts: Sequence[int]
    ids: Sequence[int]
    """[T]; any number where the token is still on the device."""
    logit_rows: npt.NDArray[np.int64]
    """[R], rising: after which tokens the logits are wanted."""
    sources: npt.NDArray[np.int64]
    """[R]: which of the tokens drawn last the one at the logit row is; -1 for one of `ids`."""
    uniforms: npt.NDArray[np.float32]
    """[R]: see `Readout`."""


class Drawn:
    """What a pass gives: `wait` for it before the second launch after its own."""

    def __init__(self, logits: torch.Tensor, values: torch.Tensor, rows: npt.NDArray[np.int64], event: Any) -> None:
        self.logits = logits
        """[n, vocab]; valid until the next launch."""
        self.rows = rows
        """[R]: the row of `logits`, and the source number, of each of `Tokens.logit_rows`."""
        self._values = values
        self._event = event

    def wait(self) -> npt.NDArray[np.float32]:
        """[6, R]: see `Readout`."""
        if self._event is not None:
            self._event.synchronize()
        values: npt.NDArray[np.float32] = self._values.numpy()[:, self.rows]
        return values


class Outbox:
    """What passes leave on the device, and how it reaches the host. Shared by all passes of one engine.

    `tokens` int64 [2 * rows]: first those that the last pass drew, then those drawn from the logits of kept nodes.
    `logits` [rows, vocab]: one buffer, because the logits of many rows are larger than all else that a pass makes.
    """

    def __init__(self, loaded: LoadedModel, rows: int) -> None:
        device = loaded.device
        self.rows = rows
        self.matrix = OutputMatrix(loaded.model)
        self.on_gpu = device.type == "cuda"
        self.logits = torch.empty(0)
        self.tokens = torch.zeros(2 * rows, dtype=torch.long, device=device)
        self.values = torch.zeros(2, READINGS, rows, dtype=torch.float32, device=device)
        self._ring = [torch.zeros(2, READINGS, rows, pin_memory=self.on_gpu) for _ in range(_IN_FLIGHT + 1)]
        self._turn = 0

    def room(self, rows: int, vocab: int, dtype: torch.dtype) -> torch.Tensor | None:
        """[rows, vocab] of the buffer, uninitialised; None where it is of another kind, or too small."""
        if not self.logits.numel():
            self.logits = torch.empty(self.rows, vocab, dtype=dtype, device=self.tokens.device)
        if rows > self.rows or self.logits.shape[1] != vocab or self.logits.dtype != dtype:
            return None
        return self.logits[:rows]

    def hold(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits [n, vocab] of a pass, in the buffer. Most are there already."""
        rows, vocab = logits.shape
        room = self.room(rows, vocab, logits.dtype)
        if room is None:  # the model makes something else of what its output matrix gave: it does so in every pass
            self.logits = logits.new_empty(self.rows, vocab)
            room = self.logits[:rows]
        if not (logits.data_ptr() == room.data_ptr() and logits.is_contiguous()):
            room.copy_(logits)
        return room

    def gather(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """[n, vocab] of n logits [vocab] of kept nodes, in the buffer if they are of its kind. The logits of the last
        pass, which lay there, must have been read and copied."""
        room = self.room(len(rows), len(rows[0]), rows[0].dtype)
        if room is None or any(row.dtype != room.dtype for row in rows):
            return torch.stack(list(rows))
        return torch.stack(list(rows), out=room)

    def send(self, half: int) -> tuple[torch.Tensor, Any]:
        """Start the copy of `values[half]` [6, rows] to the host; the copy and what says that it is there."""
        self._turn = (self._turn + 1) % len(self._ring)
        target = self._ring[self._turn][half]
        target.copy_(self.values[half], non_blocking=True)
        if not self.on_gpu:
            return target, None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return target, event


class FixedStep:
    """A pass of up to `capacity` tokens. Without `logit_capacity` every token's logits are read."""

    def __init__(
        self,
        loaded: LoadedModel,
        allocator: PhysicalKVAllocator,
        readout: Readout,
        outbox: Outbox,
        capacity: int,
        logit_capacity: int | None = None,
        compiled: CompiledLayers | None = None,
    ) -> None:
        device = loaded.device
        self.capacity = capacity
        self.allocator = allocator
        self.graph: Any = None
        self.compiled = compiled
        self._model = loaded.model
        self._outbox = outbox
        self._logit_capacity = logit_capacity
        self._readout = readout
        self._on_gpu = device.type == "cuda"
        self._plan: Any = None
        self._outputs: dict[int, torch.Tensor] = {}
        self._inputs = torch.zeros(5, capacity, dtype=torch.long, device=device)
        self._rows = torch.zeros(logit_capacity or 0, dtype=torch.long, device=device)
        self._staging = [torch.zeros(5, capacity, dtype=torch.long, pin_memory=self._on_gpu) for _ in range(_IN_FLIGHT)]
        self._turn = 0

    def launch(self, tokens: Tokens) -> bool:
        """Fill the buffers and follow the tree. False if a graph captured before no longer holds."""
        self._turn = (self._turn + 1) % _IN_FLIGHT
        host = self._staging[self._turn].numpy()
        total, counts = len(tokens.ids), tokens.counts
        host[_ID, :total] = tokens.ids
        host[_SOURCE] = -1
        host[_SOURCE, tokens.logit_rows] = tokens.sources
        lengths = self.allocator.lengths(tokens.branch_ids)
        if total == len(counts):
            host[_POSITION, :total] = lengths - 1
        else:
            starts = np.cumsum(counts) - counts
            host[_POSITION, :total] = np.arange(total) + np.repeat(lengths - counts - starts, counts)
        host[_SLOT, :total] = self.allocator.last_slots(tokens.branch_ids, counts)
        host[_SLOT, total:] = -1
        noise = host[_UNIFORM].view(np.float64)
        noise[:] = 0.5
        if self._logit_capacity is None:
            noise[tokens.logit_rows] = tokens.uniforms
        else:
            noise[: len(tokens.uniforms)] = tokens.uniforms
            rows = torch.zeros(self._logit_capacity, dtype=torch.long)
            rows[: len(tokens.logit_rows)] = torch.from_numpy(tokens.logit_rows)
            self._rows.copy_(rows)
        self._inputs.copy_(self._staging[self._turn], non_blocking=True)
        return self._follow(tokens)

    def result(self, tokens: Tokens) -> Drawn:
        """What the pass that was computed or replayed last gives."""
        values, event = self._outbox.send(0)
        count = len(tokens.logit_rows)
        rows = tokens.logit_rows if self._logit_capacity is None else np.arange(count)
        return Drawn(self._outbox.logits, values, rows, event)

    def compute(self) -> None:
        """Run the pass on what is in the buffers. It asks the host for nothing that changes from pass to pass."""
        outbox, inputs = self._outbox, self._inputs
        source = inputs[_SOURCE]
        ids = torch.where(source < 0, inputs[_ID], outbox.tokens[source.clamp_min(0)])
        uniforms = inputs[_UNIFORM].view(torch.float64).float()
        batch = TreeBatch(self.allocator, self._plan, inputs[_SLOT], self._outputs)
        chosen = 0 if self._logit_capacity is None else self._rows
        with nullcontext() if self.compiled is None else self.compiled.active(), outbox.matrix.into(outbox.room):
            logits = outbox.hold(model_logits(self._model, ids, inputs[_POSITION], batch, chosen))
        count = len(logits)
        self._readout(logits, uniforms[:count], outbox.values[0, :, :count], outbox.tokens[:count])

    def capture(self, pool: Any) -> None:
        """Record `compute` as a graph. What it ran on a moment ago must be what `launch` filled last."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self.compute()
        self.graph = graph

    def _follow(self, tokens: Tokens) -> bool:
        plan, ids, counts = self._plan, tokens.branch_ids, tokens.counts
        if not hasattr(plan, "update"):
            self._plan = plan_attention(self.allocator, ids, counts)
            return False
        if len(tokens.ids) == len(counts) == plan.num_queries and plan.branch_ids == tuple(ids):
            return bool(plan.update())
        return bool(plan.update(plan_tree(self.allocator, ids, counts)))
