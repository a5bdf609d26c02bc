"""The one way to stderr."""

from __future__ import annotations

import contextlib
import os
import sys

from rich.console import Console


class StderrConsole(Console):
    """A console on stderr that takes no markup, and that falls silent, instead of ending the process, when nobody
    reads it any more."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # what is still in the stream's buffer goes nowhere, too
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, sys.stderr.fileno())
            os.close(devnull)
