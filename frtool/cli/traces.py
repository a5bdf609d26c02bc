"""A folder of traces, one a problem."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

from frtool.errors import FrtoolError, UsageError
from frtool.search.events import Event
from frtool.trace import TraceWriter

_UNFIT = re.compile(r"[^A-Za-z0-9._=+-]+")


class TraceFolder:
    """Makes the folder with the first trace. Raises UsageError where it cannot be one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: list[TraceWriter] = []
        self._count = 0
        if path.exists() and not path.is_dir():
            raise UsageError(f"--trace {path} is a file", hint="with --input it is the folder of the traces")
        if not path.parent.is_dir():
            raise UsageError(f"cannot write traces into {path}: no such folder")

    def __enter__(self) -> TraceFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._open:
            writer.close()

    def begin(self, id: str | int | None) -> TraceWriter:
        """The trace of the next problem, `00001-ID.jsonl`."""
        self._count += 1
        name = _UNFIT.sub("_", str(id))[:80]
        try:
            self._path.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write traces into {self._path}: {error.strerror}") from None
        writer = TraceWriter(self._path / f"{self._count:05}-{name}.jsonl")
        self._open.append(writer)
        return writer

    def write(self, writer: TraceWriter, event: Event) -> None:
        """Raises FrtoolError where the disk takes no more."""
        try:
            writer.write(event)
        except OSError as error:
            raise FrtoolError(f"the trace {writer.path} could not be written on: {error.strerror or error}") from None

    def end(self, writer: TraceWriter) -> None:
        self._open.remove(writer)
        writer.close()
