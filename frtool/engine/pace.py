"""How many threads a CPU computes with, while other programs come and go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from frtool.kernels.fused import flash_attention, fused_rows
from frtool.models.apart import ApartLinear
from frtool.models.packed import SILU, PackedLinear, can_pack

if TYPE_CHECKING:
    from frtool.models.load import LoadedModel

# The main thread of a pass computes or waits for the others, spinning. Where it runs for less than this share of the
# time, other programs have its core or theirs.
_LEAST_SHARE = 0.8
# Seconds of passes that are judged together, and how often in a row they must be found slow: a program that came and
# went in one long pass is no reason. Then seconds of the first pause before all threads are tried again, and the last.
_WINDOW = 0.03
_IN_A_ROW = 2
_FIRST_PAUSE = 1.0
_LAST_PAUSE = 16.0


class Pace:
    """A context around each pass: halves torch's threads where their cores are taken, and tries all again later.

    Threads that wait for one without a core make every operation wait for the scheduler: on two cores that another
    program used, two threads took 2 to 6 times as long as one. Results must not depend on the number of threads.
    """

    def __init__(
        self,
        threads: int,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.perf_counter,
        running: Callable[[], float] = time.thread_time,
    ) -> None:
        """`threads` are the most; `running` counts the seconds that the calling thread was on a core."""
        self.threads = self._most = threads
        self._set, self._clock, self._running = set_threads, clock, running
        self._pause = _FIRST_PAUSE
        self._retry = 0.0
        self._begin = (0.0, 0.0)
        self._wall = self._ran = 0.0
        self._crowded = 0
        self._resting = False

    def rest(self) -> None:
        """No pass is to come soon: whoever computes meanwhile, another forest among them, finds all threads."""
        if self.threads < self._most:
            self._set(self._most)
            self._resting = True

    def __enter__(self) -> Pace:
        if self._resting:
            self._set(self.threads)
            self._resting = False
        if self.threads < self._most and self._clock() >= self._retry:
            self._change(self._most)
        self._begin = self._clock(), self._running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = self._clock()
        self._wall += now - self._begin[0]
        self._ran += self._running() - self._begin[1]
        if self._wall < _WINDOW:
            return
        self._crowded = self._crowded + 1 if self._ran < _LEAST_SHARE * self._wall else 0
        self._wall = self._ran = 0.0
        if self.threads == 1:
            return
        if self._crowded >= _IN_A_ROW:
            self._retry = now + self._pause
            self._pause = min(2 * self._pause, _LAST_PAUSE)
            self._change(self.threads // 2)
        elif not self._crowded and self.threads == self._most:
            self._pause = _FIRST_PAUSE

    def _change(self, threads: int) -> None:
        self._wall = self._ran = 0.0
        self._crowded = 0
        self.threads = threads
        self._set(threads)


def may_change_threads(loaded: LoadedModel) -> bool:
    """Whether nobody has fixed the threads of this model, and its products are the same bits for every number."""
    threads = torch.get_num_threads()
    if threads == 1 or os.environ.get("OMP_NUM_THREADS") or not can_pack(loaded.device, loaded.dtype):
        return False
    kinds = {type(module) for module in loaded.model.modules() if isinstance(module, ApartLinear)}
    return _agree(threads, loaded.dtype, loaded.head_dim, frozenset(kinds))


@lru_cache
@torch.inference_mode()
def _agree(threads: int, dtype: torch.dtype, dim: int, kinds: frozenset[type[ApartLinear]]) -> bool:
    """Products of a layer, of these kinds too, and of attention, with all threads and with as few as a pace may come
    to."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 1100, generator=generator).to(dtype)
    layers: list[PackedLinear | ApartLinear] = [PackedLinear(_layer(1100, 600, dtype, generator))]
    layers += [kind(_layer(1088, 592, dtype, generator), then=SILU) for kind in kinds]
    q, k = (torch.randn(2 * threads, rows, dim, generator=generator) for rows in (32, 64))
    results = []
    count = threads
    try:
        while count:
            torch.set_num_threads(count)
            scores = torch.bmm(q, k.transpose(1, 2))
            of_count = [layer(x[:, : layer.in_features]) for layer in layers]
            of_count += [scores, torch.bmm(scores, k), torch.softmax(scores, -1)]
            fused = fused_rows(dtype, dim, torch.device("cpu"))
            if fused:
                rows, keys = (a.unsqueeze(1).to(dtype) for a in (q, k))
                of_count += flash_attention(rows, keys, keys, None, dim**-0.5)
            results.append([torch.tensor(fused), *of_count])
            count //= 2
    finally:
        torch.set_num_threads(threads)
    return all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def _layer(length: int, width: int, dtype: torch.dtype, generator: torch.Generator) -> torch.nn.Linear:
    layer = torch.nn.Linear(length, width, bias=False, dtype=dtype)
    torch.nn.init.normal_(layer.weight, 0, 1 / 32, generator=generator)
    return layer
