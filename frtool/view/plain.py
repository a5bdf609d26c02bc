"""A line now and then, for logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.text import Text

from frtool.search.events import Ended, Event, Resumed, RunStarted

from .glyphs import glyphs_for, number
from .model import TreeModel
from .report import report
from .safe import safe_line

# Seconds between lines: soon at first, then rarely, so that an hour's log stays short.
_PAUSES = (2.0, 3.0, 5.0, 10.0, 20.0, 30.0)


class PlainView:
    """Progress as lines without cursor movement, then the report. Without `progress` only the report."""

    def __init__(
        self, console: Console, *, progress: bool = True, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.console = console
        self.model = TreeModel()
        self._progress = progress
        self._clock = clock
        self._glyphs = glyphs_for(console.encoding)
        self._next = 0.0
        self._said = 0
        self._next_progress = 0.0

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def progress(self, text: str) -> None:
        now = self._clock()
        if self._progress and now >= self._next_progress:
            self._next_progress = now + 1.0
            self._line(safe_line(text))

    def say(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def show(self, event: Event) -> None:
        self.model.apply(event)
        if isinstance(event, Ended):
            for block in report(self.model, self._glyphs):
                self.console.print(block)
        elif not self._progress:
            return
        elif isinstance(event, RunStarted):
            info, config = event.model, event.config
            where = " ".join(str(info[k]) for k in ("device", "dtype") if info.get(k))
            name = info.get("name") or config.get("model", "")
            self._line(
                safe_line(f"{config.get('algorithm', 'search')} with {name}" + (f" on {where}" if where else ""))
            )
            self._next = self._clock() + _PAUSES[0]
        elif isinstance(event, Resumed):
            self._line(f"going on after {event.nodes:,} steps and {event.seconds:.1f} s")
        elif self._clock() >= self._next:
            self._said = min(self._said + 1, len(_PAUSES) - 1)
            self._next = self._clock() + _PAUSES[self._said]
            self._line(self._state())

    def _state(self) -> str:
        model, tick = self.model, self.model.tick
        best = model.best()
        parts = [f"{model.steps:,} steps, {model.terminals:,} finished"]
        if tick is not None:
            parts = [f"{tick.seconds:.1f} s", f"{tick.policy_tokens + tick.scorer_tokens:,} tokens", *parts]
            parts.append(f"KV {tick.blocks_used:,}/{tick.blocks_total:,} blocks")
        if best.parent is not None:
            answer = f" {safe_line(best.answer, 60)}" if best.answer is not None else ""
            parts.append(f"best {number(best.value).strip()}{answer}")
        return ", ".join(parts)

    def _line(self, text: str) -> None:
        self.console.print(Text.assemble(("frtool: ", "dim"), text), soft_wrap=True)
