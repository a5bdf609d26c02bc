"""Which recorded pass runs a step, and what is done where nothing can be recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from frtool.models.text import one_line

from .fixed_step import Drawn, FixedStep, Outbox, Tokens
from .readout import Readout

if TYPE_CHECKING:
    import numpy.typing as npt

    from frtool.kernels.allocator import PhysicalKVAllocator
    from frtool.models.load import LoadedModel

    from .compiled import CompiledLayers
    from .options import EngineOptions

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
# Where a matrix product's rows must have the same bits whatever the others are: see `batch.ROW_MULTIPLE`.
_CPU_BUCKETS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
_LEAST_LARGEST = 64
_WIDE = 64
"""Passes beyond the buckets are padded to a multiple of it."""
_WORTH_RECORDING = 32
"""Passes of a size, from which on it gets its own graph where a wider one would do: recording takes about as long as
these waste on padding."""


class Passes:
    """The passes of one engine: one fixed step, and on a GPU one graph, for each batch size of a short list.

    The first pass of a size runs as it is, and is recorded after that; later ones are replayed. Until it comes up often
    a wider one serves, where there is one: a batch that drains has few passes of each size. A graph is recorded
    again only where the tree has outgrown the buffers of its attention plan. Where recording fails, passes run on as
    they are, and `mode` says why.
    """

    def __init__(self, loaded: LoadedModel, allocator: PhysicalKVAllocator, options: EngineOptions) -> None:
        on_gpu = loaded.device.type == "cuda"
        self.capturing = on_gpu and options.capture
        self.reason = "" if self.capturing else "not asked for" if on_gpu else "the device is a CPU"
        """Why nothing is recorded."""
        self.recorded = 0
        """Graphs so far, those included that took the place of others."""
        self._loaded = loaded
        self._allocator = allocator
        self._options = options
        sizes = BUCKETS if on_gpu else _CPU_BUCKETS
        wanted = max(options.batch, _LEAST_LARGEST)
        largest = next((size for size in sizes if size >= wanted), -(-wanted // _WIDE) * _WIDE)
        self.sizes = [*(size for size in sizes if size < largest), largest]
        self._outbox = Outbox(loaded, largest)
        self._steps: dict[int, FixedStep] = {}
        self._wanted: Counter[int] = Counter()
        self._served: set[int] = set()
        """Sizes that had room on the device when they ran last."""
        self._readout = Readout(loaded, options, largest)
        self._pool: Any = None
        self._compiled: CompiledLayers | None = None
        self.compile_reason = "" if options.compile else "not asked for"
        """Why nothing is compiled."""
        if options.compile:
            self._compile()

    @property
    def mode(self) -> str:
        """How passes run, for people."""
        mode = "captured" if self.capturing else f"eager ({self.reason})"
        if self._compiled is not None:
            return f"{mode}, compiled"
        return mode if not self._options.compile else f"{mode}, not compiled ({self.compile_reason})"

    @property
    def limit(self) -> int:
        """Rows of logits of one pass at most."""
        return self._outbox.rows

    def launch(self, tokens: Tokens) -> Drawn:
        """Start a pass. The KV of its tokens is in the pool for whatever is launched later."""
        total = len(tokens.ids)
        size = self._size(total)
        if size is None:
            wide = self._step(-(-total // _WIDE) * _WIDE, self._outbox.rows)
            wide.launch(tokens)
            self.run(wide, False)
            return wide.result(tokens)
        if size not in self._steps:
            self._steps[size] = self._step(size)
        step = self._steps[size]
        holds = step.launch(tokens)
        replayable = step.graph is not None and holds
        try:
            self.run(step, replayable)
        except torch.OutOfMemoryError:
            self._served = {other for other in self._served if other < size}
            raise
        self._served.add(size)
        drawn = step.result(tokens)
        if self.capturing and not replayable:
            self._record(step)
        return drawn

    def run(self, step: FixedStep, replayable: bool) -> None:
        """Start what a step has in its buffers."""
        if replayable:
            step.graph.replay()
        else:
            self._compute(step)

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Run a pass of one token, so that `mode` tells from the start whether passes can be recorded."""
        if not (self.capturing or self._compiled is not None) or not self._allocator.free_blocks:
            return
        branch = self._allocator.alloc_branch(1).branch_id
        try:
            first, known, middle = np.zeros(1, np.int64), np.full(1, -1), np.full(1, 0.5, np.float32)
            self.launch(Tokens([branch], [1], [0], first, known, middle)).wait()
        finally:
            self._allocator.free_branch(branch)

    def draw(self, kept: Sequence[torch.Tensor], uniforms: npt.NDArray[np.float32]) -> Drawn:
        """Sample from n logits [vocab] of kept nodes, which take the place of the last pass's. Token i is source number
        `limit + i` for the next pass."""
        logits = self._outbox.gather(kept)
        count, rows = len(logits), self.limit
        noise = torch.from_numpy(uniforms).to(logits.device, non_blocking=True)
        outbox = self._outbox
        self._readout(logits, noise, outbox.values[1, :, :count], outbox.tokens[rows : rows + count])
        values, event = outbox.send(1)
        return Drawn(logits, values, np.arange(count), event)

    def _size(self, tokens: int) -> int | None:
        """Of the step for so many tokens; None where they are too many."""
        fitting = [size for size in self.sizes if size >= tokens]
        if not fitting:
            return None
        self._wanted[fitting[0]] += 1
        if self._wanted[fitting[0]] > _WORTH_RECORDING:
            return fitting[0]
        return next((size for size in fitting if size in self._served), fitting[0])

    def _step(self, capacity: int, logit_capacity: int | None = None) -> FixedStep:
        compiled = self._compiled if logit_capacity is None else None
        return FixedStep(self._loaded, self._allocator, self._readout, self._outbox, capacity, logit_capacity, compiled)

    def _compile(self) -> None:
        from .compiled import CompiledLayers

        try:
            self._compiled = CompiledLayers(self._loaded.model)
        except Exception as error:  # as in `_record`
            self.compile_reason = _first_line(error)

    def _compute(self, step: FixedStep) -> None:
        if step.compiled is not None:
            try:
                step.compute()
                return
            except Exception as error:  # as in `_record`
                self._compiled = None
                self.compile_reason = _first_line(error)
                for other in self._steps.values():
                    other.compiled = None
        step.compute()

    def _record(self, step: FixedStep) -> None:
        step.graph = None
        if all(other.graph is None for other in self._steps.values()):  # a pool ends with its last graph
            self._pool = torch.cuda.graph_pool_handle()
        try:
            step.capture(self._pool)
        except Exception as error:
            # A model's own code may do anything here; what it computes as it is stays right.
            torch.cuda.synchronize(self._loaded.device)
            self.capturing = False
            self.reason = _first_line(error)
            for other in self._steps.values():
                other.graph = None
        else:
            self.recorded += 1


def _first_line(error: Exception) -> str:
    return one_line((str(error).strip().splitlines() or [type(error).__name__])[0], 120)
