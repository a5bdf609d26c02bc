"""Lines of a file or of stdin, taken as they come and without waiting where something else is to do."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from frtool.errors import UsageError

MAX_LINE_BYTES = 1 << 20
_CHUNK = 1 << 16
# Seconds that a wait lasts at most, so that a Ctrl-C is seen.
_GLANCE = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank, without its end; `error` where it cannot be read."""

    number: int
    text: str
    error: str | None = None


class LineSource:
    """Raises UsageError for a file that cannot be read and for one that is no text."""

    def __init__(self, path: Path) -> None:
        self.name = "stdin" if str(path) == "-" else str(path)
        self.over = False
        """Whether every line was taken."""
        self._close: Callable[[], None] = lambda: None
        self._read, self._descriptor = self._open(path)
        self._buffer = bytearray()
        self._searched = 0
        self._skips = False  # the line so far was too long and is gone
        self._number = 0
        self._ended = False
        self._begun = False

    def __enter__(self) -> LineSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def take(self, *, wait: bool) -> Line | None:
        """The next line; None at the end (`over`), and where there is none yet, with `wait` after a moment."""
        while True:
            line = self._cut()
            if line is not None or self.over:
                return line
            if not self._fill(wait):
                return None

    def _open(self, path: Path) -> tuple[Callable[[int], bytes], int | None]:
        try:
            if str(path) != "-":
                file = path.open("rb", buffering=0)
                self._close = file.close
                return (lambda count: file.read(count) or b""), None
            if sys.stdin is None:
                raise UsageError("there is no stdin")
            try:
                descriptor = sys.stdin.fileno()
            except OSError:  # something else stands for it
                return sys.stdin.buffer.read, None
            return (lambda count: os.read(descriptor, count)), descriptor
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot read the problems from {self.name}: {reason}") from None

    def _fill(self, wait: bool) -> bool:
        """Read some more; whether anything came, the end included."""
        if self._descriptor is not None and not _ready(self._descriptor, _GLANCE if wait else 0.0):
            return False
        try:
            data = self._read(_CHUNK)
        except OSError as error:
            raise UsageError(f"cannot read the problems from {self.name}: {error.strerror}") from None
        if not self._begun:
            self._begun = True
            if b"\0" in data:
                raise UsageError(f"{self.name} holds no text, but problems stand there, one a line")
        self._ended = not data
        self._buffer += data
        return True

    def _cut(self) -> Line | None:
        """The first line of the buffer that is not blank."""
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end < 0 and not (self._ended and (self._buffer or self._skips)):
                self._searched = len(self._buffer)
                if len(self._buffer) > MAX_LINE_BYTES:
                    self._buffer.clear()
                    self._searched, self._skips = 0, True
                self.over = self._ended
                return None
            data = bytes(self._buffer[:end] if end >= 0 else self._buffer)
            del self._buffer[: end + 1 if end >= 0 else len(data)]
            self._searched, skipped, self._skips = 0, self._skips, False
            if not self._number:
                data = data.removeprefix(b"\xef\xbb\xbf")
            self._number += 1
            if skipped or len(data) > MAX_LINE_BYTES:
                return Line(self._number, "", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
            if not data.strip():
                continue
            try:
                return Line(self._number, data.decode("utf-8").rstrip("\r"))
            except UnicodeDecodeError:
                return Line(self._number, "", "the line is not valid UTF-8")


def _ready(descriptor: int, seconds: float) -> bool:
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    except (OSError, ValueError):  # Windows knows it for sockets only
        return True
