"""Ctrl-C: once ends the search at its next step, twice at once. SIGTERM and a hang-up end it at once, in order."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Stopper:
    """While it is entered, signals end the search the orderly way. `signal` is the first that came."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._interrupt: Callable[[], None] | None = None
        self._at_once = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
            try:
                self._old[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread: whoever owns it handles signals
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def attach(self, interrupt: Callable[[], None]) -> None:
        """From now on the first Ctrl-C calls `interrupt`."""
        self._interrupt = interrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt again where a signal has raised it: an error on its way out may have replaced it."""
        if self._at_once:
            raise KeyboardInterrupt

    @property
    def status(self) -> int:
        """The exit status of a search that was stopped from outside."""
        return 128 + (self.signal or signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        if first:
            self.signal = number
        if first and number == signal.SIGINT and self._interrupt is not None:
            self._interrupt()
            return
        # One more may come while the trace is being finished; it must be able to end a process that hangs.
        signal.signal(number, signal.SIG_DFL)
        self._at_once = True
        raise KeyboardInterrupt
