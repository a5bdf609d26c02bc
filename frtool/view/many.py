"""What a person sees of many searches at once: how many are done, how many are right, how fast it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.status import Status
from rich.text import Text

from frtool.search.events import Ended

from .console import StderrConsole
from .glyphs import bytes_text, glyphs_for
from .safe import safe_line

# Seconds between lines where a line cannot be redrawn.
_PAUSES = (2.0, 5.0, 10.0, 20.0, 30.0)


class ManyView:
    """One line that changes on a terminal, lines now and then elsewhere, and the sum of it all at the end.

    `quiet`: nothing but failures; without `progress` only those and the sum.
    """

    def __init__(
        self, *, quiet: bool = False, progress: bool = True, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.console = StderrConsole()
        self._quiet = quiet
        self._progress = progress and not quiet
        self._clock = clock
        self._dot = glyphs_for(self.console.encoding).dot
        self._status: Status | None = None
        if self._progress and self.console.is_terminal:
            self._status = self.console.status("")
        self._began = self._next = clock()
        self._said = 0
        self._answered = self._unsolved = self._failed = 0
        self._tokens = 0
        self._ended: Ended | None = None

    def __enter__(self) -> ManyView:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        if self._done and not self._quiet:
            self._line(self._sum())

    def progress(self, text: str) -> None:
        """A stage before the searches begin."""
        self._began = self._clock()
        if self._status is not None:
            self._status.update(Text(safe_line(text)))
        elif self._progress and self._began >= self._next:
            self._next = self._began + 1.0
            self._line(safe_line(text))

    def say(self, text: str) -> None:
        self._line(text)

    def add(self, status: int, ended: Ended) -> None:
        """A search that came to its end, with its exit status."""
        self._answered += status == 0
        self._unsolved += status != 0
        self._tokens += ended.policy_tokens + ended.scorer_tokens
        self._ended = ended

    def fail(self, text: str) -> None:
        self._failed += 1
        self.console.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)

    def look(self, active: int) -> None:
        """Tell how it stands, where it is time."""
        now = self._clock()
        if not self._progress or now < self._next or not self._done:
            return
        if self._status is not None:
            self._next = now + 0.1
            self._status.update(Text(self._state(active)))
        else:
            self._next = now + _PAUSES[min(self._said, len(_PAUSES) - 1)]
            self._said += 1
            self._line(self._state(active))

    @property
    def _done(self) -> int:
        return self._answered + self._unsolved + self._failed

    def _state(self, active: int) -> str:
        parts = [f"{self._done:,} done, {active:,} under way", f"{self._answered:,} answered"]
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        return self._dot.join([*parts, *self._speed()])

    def _sum(self) -> str:
        parts = [f"{self._done:,} problems", f"{self._answered:,} answered", f"{self._unsolved:,} not solved"]
        parts += [f"{self._failed:,} failed"] if self._failed else []
        parts += [f"{self._clock() - self._began:.1f} s", *self._speed(), f"{self._tokens:,} tokens"]
        if self._ended is not None and self._ended.kv_unshared_peak_bytes > self._ended.kv_peak_bytes:
            peak, unshared = self._ended.kv_peak_bytes, self._ended.kv_unshared_peak_bytes
            parts.append(f"KV peak {bytes_text(peak)} instead of {bytes_text(unshared)} unshared")
        return self._dot.join(parts)

    def _speed(self) -> list[str]:
        seconds = self._clock() - self._began
        return [f"{60 * self._done / seconds:,.0f} a minute"] if seconds > 1 else []

    def _line(self, text: str) -> None:
        self.console.print(Text.assemble(("frtool: ", "dim"), text), soft_wrap=True)
