"""The processes that a program leaves behind, however they detached themselves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from types import TracebackType

_SET_SUBREAPER, _GET_SUBREAPER = 36, 37  # prctl(2)
_SECONDS = 5.0
"""A program that forks faster than it can be killed is given up on after so long."""


class Descendants:
    """While it is entered, orphans below this process become its children; on leaving, those that were started
    meanwhile in another session are killed and buried.

    A program run in a session of its own cannot leave it unseen: a child that calls setsid and outlives its parents
    still stands below this process. What threads of this process start stays in its session, and lives. On systems
    other than Linux nothing happens, and the program's process group is all that can be ended.
    """

    def __init__(self) -> None:
        self._works = sys.platform.startswith("linux") and os.path.isdir("/proc/self")
        self._before: set[int] = set()
        self._was = 0

    def __enter__(self) -> Descendants:
        if self._works:
            self._before = set(_below(os.getpid()))
            self._was = _subreaper()
            self._works = _prctl(_SET_SUBREAPER, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._works:
            try:
                self._end()
            finally:
                _prctl(_SET_SUBREAPER, self._was)

    def _end(self) -> None:
        ours, deadline = os.getsid(0), time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            strays = [
                pid for pid, session in _below(os.getpid()).items() if session != ours and pid not in self._before
            ]
            if not strays:
                return
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            for pid in strays:
                with contextlib.suppress(ChildProcessError):  # its parent is yet to go
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)


def _below(root: int) -> dict[int, int]:
    """The sessions of all processes below `root`, by process id."""
    children: dict[int, list[int]] = {}
    sessions: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                after_name = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        parent, session = int(after_name[1]), int(after_name[3])
        children.setdefault(parent, []).append(int(name))
        sessions[int(name)] = session
    below: dict[int, int] = {}
    stack = [root]
    while stack:
        for child in children.get(stack.pop(), []):
            below[child] = sessions[child]
            stack.append(child)
    return below


def _prctl(option: int, argument: int) -> bool:
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _subreaper() -> int:
    value = ctypes.c_int(0)
    try:
        ctypes.CDLL(None, use_errno=True).prctl(_GET_SUBREAPER, ctypes.byref(value), 0, 0, 0)
    except (OSError, AttributeError):
        return 0
    return value.value
