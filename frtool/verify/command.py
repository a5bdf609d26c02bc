"""A user's own program as the judge of an answer."""

from __future__ import annotations

import contextlib
import math
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import IO

from frtool.errors import FrtoolError, UsageError

from .descendants import Descendants

SECONDS = 10.0
OUTPUT_BYTES = 1 << 16
REMEMBERED = 4096
STOPPED = "stopped"
PLACE = "{}"
"""An argument that is just this is replaced by the file's path."""

_NUMBER = re.compile(rb"\s*([-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,4})?)\s*\Z")
_GLANCE = 0.05
"""Seconds between two looks at a program that says nothing: a child of it may keep its output open."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a program said of one answer."""

    right: bool
    score: float
    """In [0, 1]: the number on the first line of the output, else 1 or 0 like `right`."""
    why: str
    """'exit status N', 'signal N', 'time limit', 'output limit' or 'stopped'."""


class CommandVerifier:
    """Runs a program on each new answer: exit status 0 is right.

    The answer is on its standard input and in a file, whose path is its last argument, or stands where an argument is
    `{}`. A number on the first line of its output is the score, held to 0 to 1. There is no shell. The program leads a
    session of its own, which is killed when the program ends, at the time limit, or past the output limit, with what
    has detached itself from it; the last two count as wrong. Its error output is dropped. Verdicts are remembered.
    """

    name = "command"

    def __init__(self, command: str, *, seconds: float = SECONDS, output_bytes: int = OUTPUT_BYTES) -> None:
        """Raises UsageError for a command that cannot be split or found, and for limits that allow nothing."""
        if os.name != "posix":
            raise UsageError("--verify-command needs process groups, which this system lacks")
        if not 0 < seconds < math.inf or output_bytes < 1:
            raise UsageError(f"the verify command's limits of {seconds:g} s and {output_bytes} bytes allow nothing")
        self.arguments = split_command(command)
        self._seconds = seconds
        self._output_bytes = output_bytes
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self.runs = 0

    def verify(self, answer: str) -> bool:
        return self.judge(answer).right

    def score(self, answer: str) -> float:
        return self.judge(answer).score

    def judge(self, answer: str, over: threading.Event | None = None) -> Verdict:
        """The verdict, from memory where the answer was seen before. When another thread sets `over`, the program is
        ended and the verdict is that, for this time. Raises FrtoolError when nothing can be run."""
        over = over or threading.Event()
        known = self._verdicts.get(answer)
        if known is None:
            known = Verdict(False, 0.0, STOPPED) if over.is_set() else self._run(answer, over)
            if known.why == STOPPED:
                return known
            self._verdicts[answer] = known
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        else:
            self._verdicts.move_to_end(answer)
        return known

    def _run(self, answer: str, over: threading.Event) -> Verdict:
        self.runs += 1
        with tempfile.TemporaryDirectory(prefix="frtool-", ignore_cleanup_errors=True) as folder:
            path = os.path.join(folder, "answer.txt")
            with open(path, "wb") as file:
                file.write(answer.encode("utf-8", "replace"))
            arguments = [path if argument == PLACE else argument for argument in self.arguments]
            if PLACE not in self.arguments:
                arguments.append(path)
            with open(path, "rb") as stdin, Descendants():
                try:
                    process = subprocess.Popen(
                        arguments,
                        stdin=stdin,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        bufsize=0,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise FrtoolError(
                        f"the verify command `{self.arguments[0]}` cannot be run: {error.strerror or error}"
                    ) from None
                assert process.stdout is not None
                with process.stdout as stdout:
                    try:
                        output, limit = self._read(process, stdout, over)
                    finally:
                        _end(process)
        if limit is not None:
            return Verdict(False, 0.0, limit)
        status = process.returncode
        score = _score(output)
        right = status == 0
        why = f"exit status {status}" if status >= 0 else f"signal {-status}"
        return Verdict(right, float(right) if score is None else score, why)

    def _read(
        self, process: subprocess.Popen[bytes], stdout: IO[bytes], over: threading.Event
    ) -> tuple[bytes, str | None]:
        """The output until the program ends, and the limit that it ran into, if any."""
        deadline = time.monotonic() + self._seconds
        os.set_blocking(stdout.fileno(), False)
        parts: list[bytes] = []
        size = 0
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                ended = process.poll() is not None
                while (part := _available(stdout)) is not None:
                    if not part:  # its end, though the program may go on in silence
                        return b"".join(parts), self._wait(process, deadline, over)
                    parts.append(part)
                    size += len(part)
                    if size > self._output_bytes:
                        return b"", "output limit"
                if ended:
                    return b"".join(parts), None
                left = deadline - time.monotonic()
                if left <= 0 or over.is_set():
                    return b"", "time limit" if left <= 0 else STOPPED
                selector.select(min(left, _GLANCE))

    def _wait(self, process: subprocess.Popen[bytes], deadline: float, over: threading.Event) -> str | None:
        while True:
            left = deadline - time.monotonic()
            try:
                process.wait(max(min(left, _GLANCE), 0.0))
            except subprocess.TimeoutExpired:
                if left <= _GLANCE or over.is_set():
                    return "time limit" if left <= _GLANCE else STOPPED
            else:
                return None


def split_command(command: str) -> list[str]:
    """The words of a command line, by the shell's rules of quoting. Raises UsageError where no program is named."""
    hint = "for example --verify-command 'python check.py'"
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--verify-command cannot be split into words: {str(error).lower()}", hint=hint) from None
    if not arguments or not arguments[0]:
        raise UsageError("--verify-command is empty", hint=hint)
    if any("\0" in argument for argument in arguments):
        raise UsageError("--verify-command holds a NUL character")
    if shutil.which(arguments[0]) is None:
        raise UsageError(
            f"--verify-command: there is no program `{arguments[0]}`",
            hint="no shell is used: pipes and variables need `sh -c '…'`",
        )
    return arguments


def _available(stdout: IO[bytes]) -> bytes | None:
    """What can be read at once: None when that is nothing yet, empty at the end."""
    try:
        return stdout.read(1 << 16)
    except BlockingIOError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group, and bury its leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _score(output: bytes) -> float | None:
    match = _NUMBER.match(output.split(b"\n", 1)[0])
    if match is None:
        return None
    return min(max(float(match[1]), 0.0), 1.0)
