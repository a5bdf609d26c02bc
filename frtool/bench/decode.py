"""`frtool bench decode`: what a step of a search costs with all its machinery, against what must be read for it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch

from frtool.engine import EngineOptions, Forest, Root
from frtool.engine.pool import block_bytes
from frtool.models.apart import bytes_saved
from frtool.models.load import LoadedModel
from frtool.search.protocols import Expand

from .decode_baselines import BASELINES, Skipped
from .peaks import copy_bandwidth

_WARM = 4
"""Polls before anything is timed, at least."""
_NEVER = "\0"
"""A delimiter that no token has in its text."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One batch size. Milliseconds are of a step: one token more on every branch."""

    batch: int
    step_ms: float
    tokens_per_second: float
    roofline_ms: float
    """Weights and distinct KV at the bandwidth of a copy."""
    host_ms: float
    """On a GPU: the step without its pass, when the device waits for the host. On a CPU: outside the forward pass."""
    work_ms: float
    """What the host computes in a step, whether the device waits for it or not."""
    peak_bytes: int | None
    """Of the device's memory, tensors of the whole run: prompt, first passes, recording. None on a CPU."""
    reserved_bytes: int | None
    """The same with what the allocator keeps at hand, the memory of recorded passes among it."""
    least_bytes: int
    """Weights and distinct KV, at the end of the run."""
    graphs: int
    mode: str
    peers_ms: dict[str, float | None] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.step_ms / self.roofline_ms

    @property
    def host_share(self) -> float:
        return self.host_ms / self.step_ms


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """What was measured, and on what."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    bandwidth: float
    """Bytes a second of a large copy, read and written."""
    rows: list[DecodeRow]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        rows = [asdict(row) | {"ratio": row.ratio, "host_share": row.host_share} for row in self.rows]
        return {
            "machine": self.machine,
            "settings": self.settings,
            "bandwidth": self.bandwidth,
            "rows": rows,
            "notes": self.notes,
        }


def run(
    loaded: LoadedModel,
    batch_sizes: Sequence[int],
    *,
    prefix: int,
    suffix: int,
    steps: int,
    compile: bool = False,
    capture: bool = True,
    baselines: Sequence[str] = (),
    on_progress: Callable[[str], None] = lambda _: None,
) -> DecodeReport:
    """Measure `steps` decode steps around `suffix` private tokens a branch behind a shared prompt of `prefix` tokens.

    Every figure is that of a whole `Forest.poll`. `baselines` are names in `BASELINES`. Raises ValueError for a model
    whose positions do not reach that far.
    """
    longest = prefix + suffix + steps
    if longest >= loaded.max_positions:
        raise ValueError(f"{longest} tokens are more than the {loaded.max_positions} positions of {loaded.name}")
    loaded = replace(loaded, eos_ids=frozenset(), reward_tokens=None)  # so that every branch goes on
    bandwidth = copy_bandwidth(loaded.device)
    rows, notes = [], []
    for batch in batch_sizes:
        on_progress(f"{batch} branches")
        row = _measure(loaded, batch, prefix, suffix, steps, bandwidth, compile=compile, capture=capture)
        peers: dict[str, float | None] = {}
        for name in baselines:
            on_progress(f"{batch} branches, {name}")
            try:
                peers[name] = 1e3 * BASELINES[name](loaded, batch, prefix, suffix, steps)
            except Skipped as reason:
                peers[name] = None
                note = f"{name}: {reason}"
                if note not in notes:
                    notes.append(note)
        rows.append(replace(row, peers_ms=peers))
    settings = {
        "model": loaded.name,
        "weights": loaded.source if loaded.source == "random weights" else "its own",
        "parameters": loaded.parameters,
        "dtype": loaded.number_format,
        "prefix": prefix,
        "suffix": suffix,
        "steps": steps,
        "compile": compile,
    }
    return DecodeReport(describe_machine(loaded.device), settings, bandwidth, rows, notes)


def _measure(
    loaded: LoadedModel, batch: int, prefix: int, suffix: int, steps: int, bandwidth: float, **options: bool
) -> DecodeRow:
    on_gpu = loaded.device.type == "cuda"
    gc.collect()  # the pool and the graphs of the batch size before
    warm = max(suffix - steps // 2, _WARM)
    private = warm + steps  # that a branch has in KV at the end
    size = 16 if on_gpu else 4
    settings = EngineOptions(
        batch=batch,
        max_step_tokens=private + 1,
        delimiter=_NEVER,
        block_size=size,
        # One more: an engine asks for a pool that holds the prompt and one whole step.
        num_blocks=-(-prefix // size) + batch * -(-(prefix % size + private) // size) + 1,
        **options,
    )
    if on_gpu:
        torch.cuda.synchronize(loaded.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(loaded.device)
    forest = Forest(loaded, settings, prefix)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(min(loaded.vocab_size, 1 << 15), (prefix,), generator=generator).tolist()
    root = Root(forest, prompt)
    for ordinal in range(batch):
        root.submit(Expand("0", ordinal))
    clock = _Clock(forest)
    for _ in range(warm):
        forest.poll()
    step, device, work = clock.split(forest.poll, steps)
    stored = forest.allocator.stats().physical_tokens
    read = prefix + batch * (warm + steps // 2)
    row = DecodeRow(
        batch=batch,
        step_ms=1e3 * step,
        tokens_per_second=batch / step,
        roofline_ms=1e3 * (weight_bytes(loaded) - _unread_bytes(loaded) + read * block_bytes(loaded, 1)) / bandwidth,
        host_ms=1e3 * max(step - device, 0.0),
        work_ms=1e3 * work,
        peak_bytes=torch.cuda.max_memory_allocated(loaded.device) if on_gpu else None,
        reserved_bytes=torch.cuda.max_memory_reserved(loaded.device) if on_gpu else None,
        least_bytes=weight_bytes(loaded) + stored * block_bytes(loaded, 1),
        graphs=forest.passes.recorded if forest.passes is not None else 0,
        mode=forest.mode,
    )
    root.close()
    forest.allocator.check()
    return row


class _Clock:
    """Splits polls into what the device computes and what the host does."""

    def __init__(self, forest: Forest) -> None:
        self._passes = forest.passes
        self._on_gpu = forest.loaded.device.type == "cuda"
        self._waited: list[float] = []
        self._busy: list[float] = []
        self._marks: list[tuple[Any, Any]] = []
        if self._passes is not None:
            self._launch_pass, self._run_step = self._passes.launch, self._passes.run
            self._passes.launch = self._launch  # type: ignore[method-assign]
            self._passes.run = self._run  # type: ignore[method-assign]
        else:
            self._forward_batch = forest.batch.forward
            forest.batch.forward = self._forward  # type: ignore[method-assign, assignment]

    def split(self, poll: Callable[[], None], count: int) -> tuple[float, float, float]:
        """Seconds of the median poll out of `count`: in all, of the device's pass, and of the host's own work."""
        for noted in (self._waited, self._busy, self._marks):
            noted.clear()  # type: ignore[attr-defined]
        times = []
        for _ in range(count):
            started = time.perf_counter()
            poll()
            times.append(time.perf_counter() - started)
        if self._on_gpu:
            torch.cuda.synchronize()
            self._busy = [first.elapsed_time(last) / 1e3 for first, last in self._marks]
        away = self._busy if self._passes is None else self._waited
        work = [whole - part for whole, part in zip(times, away, strict=False)]
        return median(times), median(self._busy), median(work)

    def _launch(self, tokens: Any) -> Any:
        drawn = self._launch_pass(tokens)
        wait = drawn.wait

        def timed() -> Any:
            started = time.perf_counter()
            values = wait()
            self._waited.append(time.perf_counter() - started)
            return values

        drawn.wait = timed  # type: ignore[method-assign]
        return drawn

    def _run(self, step: Any, replayable: bool) -> None:
        started = time.perf_counter()
        if self._on_gpu:
            marks = _event(), _event()
            marks[0].record()
            self._run_step(step, replayable)
            marks[1].record()
            self._marks.append(marks)
        else:
            self._run_step(step, replayable)
            self._busy.append(time.perf_counter() - started)

    def _forward(self, *arguments: Any) -> torch.Tensor:
        started = time.perf_counter()
        logits: torch.Tensor = self._forward_batch(*arguments)
        self._busy.append(time.perf_counter() - started)
        return logits


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def weight_bytes(loaded: LoadedModel) -> int:
    """Bytes of all weights, tied ones once."""
    size = loaded.dtype.itemsize
    return loaded.parameters * size - bytes_saved(loaded.model, size)


def _unread_bytes(loaded: LoadedModel) -> int:
    """Of weights that a step does not read: an input embedding that is not the output's too."""
    config = loaded.model.config.get_text_config(decoder=True)
    if config.tie_word_embeddings:
        return 0
    return int(loaded.model.get_input_embeddings().weight.numel() * loaded.dtype.itemsize)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    import platform

    import transformers

    from frtool.doctor.machine import processor

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
