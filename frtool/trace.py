"""The trace of a search: one event a line of JSON, written as it happens, readable after a kill."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

from frtool.errors import FrtoolError, UsageError
from frtool.search.events import (
    TRACE_VERSION,
    Ended,
    Event,
    NodeAdded,
    Resumed,
    RunStarted,
    Tick,
    from_record,
    to_record,
)
from frtool.view.safe import safe_json

MAX_LINE_BYTES = 16 * 1024 * 1024
_NODE_ID = re.compile(r"0(\.\d{1,9})*\Z")
_MAX_ID = 8192


class TraceError(FrtoolError):
    """A trace that cannot be read, with its line."""


class TraceWriter:
    """Writes events to `path`, each flushed before `write` returns.

    Opening checks that the file can be written, and changes nothing in it: what stood there goes with the first event.
    With `keep` the first so many bytes stay, which end with a whole event, and nothing is written before the event
    Resumed. While it is open no other writer can open the file.

    Raises UsageError where it cannot be opened. `write` raises OSError (a full disk), after it has cut the file back to
    the last whole line where it can.
    """

    def __init__(self, path: str | Path, *, keep: int | None = None) -> None:
        self.path = Path(path)
        self._keep = keep
        if str(path) == "-":
            raise UsageError(
                "--trace needs a file: stdout carries the answer", hint="pass a path such as `--trace run.jsonl`"
            )
        try:
            self._is_new = not self.path.exists()
            self._file: BinaryIO = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            hint = "the folder does not exist" if isinstance(error, FileNotFoundError) else None
            raise UsageError(f"cannot write the trace {self.path}: {reason}", hint=hint) from None
        self._regular = stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        self._begun = False
        if self._regular and not _lock(self._file):
            self._file.close()
            raise UsageError(f"another process is writing the trace {self.path}", hint="wait until it has ended")

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, event: Event) -> None:
        line = safe_json(to_record(event)).encode() + b"\n"
        if not self._begun:
            if self._keep is not None and not isinstance(event, Resumed):
                return
            self._begun = True
            if self._regular:
                self._file.truncate(self._keep or 0)
                if self._keep and not self._ends_in_newline(self._keep):
                    line = b"\n" + line
        done = 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError:
            if done and self._regular:
                self._file.truncate(self._file.seek(0, 2) - done)
            raise

    def _ends_in_newline(self, size: int) -> bool:
        with open(self.path, "rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"

    def close(self) -> None:
        """Close the file; one that this writer made and never wrote to goes away."""
        if self._file.closed:
            return
        self._file.close()
        if self._is_new and not self._begun:
            self.path.unlink(missing_ok=True)


class TraceReader:
    """Iterates over the events of a trace. Afterwards `truncated` says that the last line was cut, and `complete` that
    the search's end stands in it. `offset` is where the line of the event given last ends, in bytes.

    Raises TraceError, naming the line, for what is no trace, for damage before the last line, for a node that stands
    there twice, and for a newer version. lines and unknown fields are skipped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.truncated = False
        self.complete = False
        self.offset = 0

    def __iter__(self) -> Iterator[Event]:
        self.truncated = self.complete = False
        try:
            file = open(self.path, "rb")  # noqa: SIM115 (closed by the with below)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TraceError(f"cannot read the trace {self.path}: {reason}") from None
        with file:
            yield from self._events(file)

    def _events(self, file: BinaryIO) -> Iterator[Event]:
        begun = False
        nodes: set[str] = set()
        number = read = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            read += len(line)
            if len(line) > MAX_LINE_BYTES:
                raise self._error(number, f"longer than {MAX_LINE_BYTES:,} bytes")
            if not line.strip():
                continue
            try:
                event = self._event(line, number, first=not begun)
            except _Cut as error:
                if begun and not line.endswith(b"\n"):
                    self.truncated = True
                    return
                raise self._error(number, str(error)) from None
            if isinstance(event, NodeAdded):
                if event.id in nodes:
                    raise self._error(number, f"node {event.id[:40]} stands there twice")
                nodes.add(event.id)
            begun = True
            self.complete = isinstance(event, Ended)
            self.offset = read
            yield event
        if not begun:
            raise TraceError(f"the trace {self.path} is empty")

    def _event(self, line: bytes, number: int, *, first: bool) -> Event:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _Cut(f"no JSON ({type(error).__name__})") from None
        if not isinstance(record, dict):
            raise self._error(number, "no JSON object")
        if first:
            self._check_first(record, number)
        try:
            event = from_record(record)
            return _checked(event)
        except ValueError as error:
            raise self._error(number, str(error)) from None

    def _check_first(self, record: dict[str, Any], number: int) -> None:
        if record.get("kind") != RunStarted.kind:
            raise self._error(number, "a trace begins with a `run` event")
        version = record.get("version")
        if type(version) is not int or version < 1:
            raise self._error(number, f"the version is {str(version)[:40]!r}")
        if version > TRACE_VERSION:
            raise TraceError(
                f"{self.path} is a trace of version {version}; this frtool reads up to version {TRACE_VERSION}",
                hint="read it with a newer frtool",
            )

    def _error(self, number: int, what: str) -> TraceError:
        return TraceError(f"{self.path}, line {number}: {what}")


def _lock(file: BinaryIO) -> bool:
    """Whether this process alone has the file. It has where nobody can tell."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems know no locks
        return True
    return True


class _Cut(ValueError):
    """A line that does not parse: damage, or, at the end of the file, a write that was cut."""


def _field_types(cls: type[Any]) -> dict[str, tuple[type[Any], ...]]:
    """The JSON types that each field of an event may have."""
    hints = get_type_hints(cls)
    types: dict[str, tuple[type[Any], ...]] = {}
    for f in fields(cls):
        hint = hints[f.name]
        options = get_args(hint) if get_origin(hint) is UnionType or isinstance(hint, UnionType) else (hint,)
        types[f.name] = tuple(get_origin(o) or o for o in options)
    return types


_TYPES: dict[type[Any], dict[str, tuple[type[Any], ...]]] = {}


def _checked(event: Event) -> Event:
    """`event` with every field of its declared type. A null number is one that JSON could not hold: not a number."""
    cls = type(event)
    types = _TYPES.get(cls) or _TYPES.setdefault(cls, _field_types(cls))
    for name, allowed in types.items():
        value = getattr(event, name)
        if value is None and float in allowed and NoneType not in allowed:
            object.__setattr__(event, name, float("nan"))
        elif type(value) is int and float in allowed:
            try:
                object.__setattr__(event, name, float(value))
            except OverflowError:
                raise ValueError(f"event {event.kind!r}: `{name}` is no number that fits") from None
        elif type(value) not in allowed:
            raise ValueError(f"event {event.kind!r}: `{name}` is a {type(value).__name__}")
    if isinstance(event, NodeAdded) and not all(
        type(token) is int and 0 <= token < 1 << 31 for token in event.token_ids
    ):
        raise ValueError("event 'node': `token_ids` holds what is no token")
    if isinstance(event, NodeAdded) and not (
        len(event.intervals) in (0, 2 * event.tokens)
        and all(type(edge) in (int, float) and 0 <= edge <= 1 for edge in event.intervals)
    ):
        raise ValueError("event 'node': `intervals` holds no pair of edges for each token")
    if isinstance(event, Tick) and not all(isinstance(text, str) for text in event.growing.values()):
        raise ValueError("event 'tick': `growing` holds what is no text")
    named = (getattr(event, name, None) for name in ("id", "duplicate_of", "best"))
    listed = (*getattr(event, "ids", ()), *getattr(event, "evicted", ()), *getattr(event, "growing", ()))
    for node_id in (*listed, *(n for n in named if n is not None)):
        if not isinstance(node_id, str) or len(node_id) > _MAX_ID or not _NODE_ID.match(node_id):
            raise ValueError(f"event {event.kind!r}: {str(node_id)[:40]!r} is no node id")
    return event
