"""Single key presses from the terminal that the program was started in."""

from __future__ import annotations

import os
import select
import sys
import time
from types import TracebackType
from typing import Any

_NAMES = {
    b" ": "pause", b"p": "pause", b"\n": "on", b"\r": "on", b"n": "on", b"\x1b[C": "on", b"\x1bOC": "on", b"b": "back",
    b"\x7f": "back", b"\x1b[D": "back", b"\x1bOD": "back", b"+": "faster", b"=": "faster", b"-": "slower",
    b"e": "end", b"q": "quit", b"\x1b": "quit", b"\x04": "quit",
}  # fmt: skip


class Keys:
    """While it is entered, `wait` gives key presses by name. Enter it only where `available` says so."""

    def __init__(self) -> None:
        self._saved: list[Any] = []
        self._fd = -1

    @staticmethod
    def available() -> bool:
        """Whether stdin is a terminal that this process may read from."""
        try:
            import termios  # noqa: F401 (absent on Windows)

            fd = sys.stdin.fileno()
            return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
        except (ImportError, OSError, ValueError, AttributeError):
            return False

    def __enter__(self) -> Keys:
        import termios
        import tty

        self._fd = sys.stdin.fileno()
        self._saved = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import termios

        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)

    def wait(self, seconds: float | None) -> str | None:
        """The next key within `seconds` (None: however long it takes): 'pause', 'on', 'back', 'faster', 'slower',
        'end', 'quit', or None for no key or another one. A closed terminal quits."""
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return None
        pressed = os.read(self._fd, 64)
        return _NAMES.get(pressed) if pressed else "quit"


class NoKeys:
    """Stands for `Keys` where there is no keyboard: only time passes."""

    def __enter__(self) -> NoKeys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def wait(self, seconds: float | None) -> str | None:
        time.sleep(seconds or 0.0)
        return None
